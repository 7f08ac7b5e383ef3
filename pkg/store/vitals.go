package store

import (
	"context"
	"fmt"
	"time"
)

// Vitals is what the database tells of itself at little cost.
type Vitals struct {
	At        time.Time // the database's clock
	Version   int       // server_version_num, such as 170005
	ReadOnly  bool      // a standby, or set so
	SizeBytes int64
	Ingesters int       // processes that load, seen within the last minute
	LastLoad  time.Time // when a load was last committed; zero when never
}

// seenWithin is how young a row of progress is whose process counts as alive:
// each writes one with every round of its trimmer, by default every 10 s.
const seenWithin = time.Minute

const readVitals = `
select now(), current_setting('server_version_num')::int, pg_is_in_recovery() or current_setting('transaction_read_only')::bool,
    pg_database_size(current_database()),
    (select count(distinct ingester) from ingest.progress where at > now() - $1::interval),
    (select max(at) from ingest.progress where slot <> 0)`

// Vitals reads them. Errors are classified like those of Load.
func (s *Store) Vitals(ctx context.Context) (Vitals, error) {
	var v Vitals
	var lastLoad *time.Time
	err := s.session(ctx, func(ses session) error {
		return ses.failed("read", ses.QueryRow(ctx, readVitals, seenWithin).Scan(&v.At, &v.Version, &v.ReadOnly, &v.SizeBytes, &v.Ingesters, &lastLoad))
	})
	if err != nil {
		return Vitals{}, fmt.Errorf("ask the database how it is: %w", err)
	}
	v.At = v.At.UTC()
	if lastLoad != nil {
		v.LastLoad = lastLoad.UTC()
	}
	return v, nil
}

// Floor returns the time of sending before which the ledger can no longer tell
// a batch that is stored from one that is not. Errors are classified like those
// of Load.
func (s *Store) Floor(ctx context.Context) (time.Time, error) {
	var floor time.Time
	err := s.session(ctx, func(ses session) error {
		return ses.failed("read the floor of the ledger", ses.QueryRow(ctx, "select sent_at from ingest.floor").Scan(&floor))
	})
	return floor.UTC(), err
}
