package store

import (
	"time"

	"pganalytics/pkg/catalogue"
)

// ColumnstoreStatements are those for a family without the columnstore and
// those that move its policy.
func ColumnstoreStatements(f *catalogue.Family) []string {
	after := time.Hour
	return append(columnstoreStatements(f, policy{}, after), columnstoreStatements(f, policy{enabled: true, after: &after}, after)...)
}
