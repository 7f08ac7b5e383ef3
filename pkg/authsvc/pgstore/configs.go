package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/policy/pulled"
)

// NewConfig is a version of a pulled document that is about to be.
type NewConfig struct {
	Collector uuid.UUID // zero: the default
	Document  string    // checked already; empty takes it back
	Author    string
	Comment   string
	// Expect is the newest version of this document as the author knows it, 0:
	// there is none. Nil does not look.
	Expect *int64
	// Above is a version that must be exceeded: one that is published though a
	// database from a backup knows nothing of it.
	Above int64
	By    authsvc.Act // for the audit
}

// One after the other: numbers must rise in the order of the commits.
const lockConfigs = `lock table identity.collector_config in share row exclusive mode`

const insertConfig = `
insert into identity.collector_config (version, collector_id, document, author, comment, created_at)
select greatest(coalesce(max(version), 0), $1) + 1, $2, $3, $4, $5, $6 from identity.collector_config
returning version`

// AddConfig adds a version, with its audit row. Errors: authsvc.ErrNoCollector,
// fault.Precondition when the newest version is not the expected one.
func (s *Store) AddConfig(ctx context.Context, c NewConfig) (pulled.Version, error) {
	v := pulled.Version{
		Collector: c.Collector, Document: c.Document, Author: c.Author, Comment: c.Comment, CreatedAt: c.By.At.Truncate(time.Microsecond),
	}
	err := s.inTx(ctx, "add configuration", func(tx pgx.Tx) error {
		resource := "default"
		if c.Collector != uuid.Nil {
			resource = c.Collector.String()
			if _, err := lockCollector(ctx, tx, c.Collector); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, lockConfigs); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		before, err := newestConfig(ctx, tx, c.Collector, 0)
		if err != nil && !errors.Is(err, ErrNoConfig) {
			return err
		}
		if c.Expect != nil && *c.Expect != before.Number {
			return fault.New(fault.Precondition, "precondition_failed",
				fmt.Sprintf("The newest version is %d, not %d: somebody was faster.", before.Number, *c.Expect))
		}
		err = tx.QueryRow(ctx, insertConfig, c.Above, nullable(c.Collector), v.Document, v.Author, v.Comment, v.CreatedAt).Scan(&v.Number)
		if err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		return audit(ctx, tx, act{
			at: c.By.At, actor: c.By.Actor, action: "config.set", result: "success", resourceType: "config", resourceID: resource, source: c.By.Source,
			changes: map[string]any{"from": before.Number, "to": v.Number, "author": v.Author, "comment": v.Comment},
		})
	})
	return v, err
}

// ErrNoConfig says that there is no such version.
var ErrNoConfig = fault.New(fault.NotFound, "not_found", "There is no such version of the configuration.")

const selectConfig = `
select version, collector_id, document, author, comment, created_at
from identity.collector_config `

// newestConfig returns a version of a document, the newest if number is 0.
func newestConfig(ctx context.Context, q querier, collector uuid.UUID, number int64) (pulled.Version, error) {
	found, err := configs(ctx, q, selectConfig+`
where collector_id is not distinct from $1 and ($2 = 0 or version = $2)
order by version desc
limit 1`, nullable(collector), number)
	if err != nil {
		return pulled.Version{}, err
	}
	if len(found) == 0 {
		return pulled.Version{}, ErrNoConfig
	}
	return found[0], nil
}

func configs(ctx context.Context, q querier, sql string, args ...any) ([]pulled.Version, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (pulled.Version, error) {
		var v pulled.Version
		var collector *uuid.UUID
		err := row.Scan(&v.Number, &collector, &v.Document, &v.Author, &v.Comment, &v.CreatedAt)
		v.Collector, v.CreatedAt = value(collector), v.CreatedAt.UTC()
		return v, err
	})
}

// Config returns a version of a document, the newest if number is 0. Errors:
// ErrNoConfig.
func (s *Store) Config(ctx context.Context, collector uuid.UUID, number int64) (pulled.Version, error) {
	v, err := newestConfig(ctx, s.pool, collector, number)
	return v, classify("read configuration", err)
}

// ConfigHistory returns the newest versions of a document, the newest first.
func (s *Store) ConfigHistory(ctx context.Context, collector uuid.UUID, most int) ([]pulled.Version, error) {
	found, err := configs(ctx, s.pool, selectConfig+`
where collector_id is not distinct from $1
order by version desc
limit $2`, nullable(collector), most)
	return found, classify("read configurations", err)
}

// NewestConfigs returns the newest version of each document, those of deleted
// collectors left out.
func (s *Store) NewestConfigs(ctx context.Context) ([]pulled.Version, error) {
	found, err := configs(ctx, s.pool, `
select distinct on (c.collector_id) c.version, c.collector_id, c.document, c.author, c.comment, c.created_at
from identity.collector_config c
left join identity.collector k on k.id = c.collector_id
where k.deleted_at is null
order by c.collector_id, c.version desc`)
	return found, classify("read configurations", err)
}

// FindCollector returns the id of the collector of that name or id. Errors:
// authsvc.ErrNoCollector.
func (s *Store) FindCollector(ctx context.Context, nameOrID string) (id uuid.UUID, name string, err error) {
	err = s.pool.QueryRow(ctx, `
select id, name from identity.collector
where deleted_at is null and (name = $1 or id::text = lower($1))
order by name = $1 desc
limit 1`, nameOrID).Scan(&id, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return id, name, authsvc.ErrNoCollector
	}
	return id, name, classify("find collector", err)
}
