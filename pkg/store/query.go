package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Table is the result of a query as text.
type Table struct {
	Columns []string
	Rows    [][]string // "" for NULL
}

// maxQueryRows bounds what a person is shown.
const maxQueryRows = 1000

// Query runs one reading statement for a person and returns at most 1,000 rows
// of its result, as the server writes them.
func Query(ctx context.Context, databaseURL, sql string) (t Table, err error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return t, fmt.Errorf("database url: %w", err)
	}
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	cfg.RuntimeParams["timezone"] = "UTC"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return t, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	// The extended protocol takes one statement only, so none can end the
	// read-only transaction and begin another.
	rows, err := conn.Query(ctx, sql, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return t, fmt.Errorf("query: %w", err)
	}
	defer rows.Close()
	for _, f := range rows.FieldDescriptions() {
		t.Columns = append(t.Columns, f.Name)
	}
	for rows.Next() && len(t.Rows) < maxQueryRows {
		row := make([]string, 0, len(t.Columns))
		for _, v := range rows.RawValues() {
			row = append(row, string(v))
		}
		t.Rows = append(t.Rows, row)
	}
	if len(t.Rows) == maxQueryRows {
		return t, nil // the rest is not asked for
	}
	if err := rows.Err(); err != nil {
		return t, fmt.Errorf("query: %w", err)
	}
	return t, nil
}
