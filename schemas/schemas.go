// Package schemas embeds the definitions that the whole system is built from:
// metric families and SQL. It holds files and nothing else.
package schemas

import "embed"

// Metrics holds one YAML file per metric family, under metrics/.
//
//go:embed metrics/*.yaml
var Metrics embed.FS

// SQL holds the forward-only migrations, under sql/.
//
//go:embed sql/*.sql
var SQL embed.FS
