// Package schemas embeds the definitions that the whole system is built from:
// metric families, SQL and the description of the HTTP interface. It holds files and nothing else.
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

// OpenAPI describes the HTTP interface. It is generated from the routes.
//
//go:embed openapi.json
var OpenAPI []byte
