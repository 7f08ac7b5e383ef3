package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
)

const lockNotAvailable = "55P03"

// glance is the wait for a key that was waited for already: long enough to
// find it held. PostgreSQL waits no shorter.
const glance = time.Millisecond

// Around each group.
const (
	apart   = "savepoint apart"
	release = "release apart"
	again   = "rollback to apart"
)

// enterApart enters what nobody else holds and marks the others Contested,
// after enterNew has waited in vain. It goes through the entries in the order
// of their keys: a group that meets a held key is halved until that is alone,
// one that does not makes the next twice as large. So a held key among n costs
// about 2 log n glances when it is alone, and one when its neighbours are held
// too, as those of a frozen load of the same batches are.
func (r *ledgerRows) enterApart(ctx context.Context, ses session, entries []entry) error {
	anew := "rollback; begin; " + lockFloor + "; set local lock_timeout = " + milliseconds(glance) + "; " + apart
	if _, err := ses.Exec(ctx, anew); err != nil {
		return ses.failed("begin anew", err)
	}
	// Prepared here they stay so after an error, in a transaction that prepares
	// nothing until it is rolled back.
	for _, sql := range []string{enterLedger, again, release, apart, waitAsEver} {
		if _, err := ses.Prepare(ctx, sql, sql); err != nil {
			return ses.failed("prepare to enter the ledger", err)
		}
	}
	next := &pgx.Batch{} // sent with the next try, in one round trip
	size := len(entries)/2 + 1
	for from := 0; from < len(entries); {
		group := entries[from:min(from+size, len(entries))]
		r.enter(next, from, group)
		err := ses.SendBatch(ctx, next).Close()
		next = &pgx.Batch{}
		switch {
		case err == nil:
			next.Queue(release)
			next.Queue(apart)
			from += len(group)
			size = 2 * len(group)
			continue
		case SQLState(err) != lockNotAvailable || ses.IsClosed():
			return ses.failed("enter the ledger", err)
		}
		next.Queue(again)
		size = len(group) / 2
		if len(group) == 1 {
			group[0].outcome = batch.Contested
			from, size = from+1, 1
		}
	}
	next.Queue(waitAsEver)
	return ses.failed("enter the ledger", ses.SendBatch(ctx, next).Close())
}
