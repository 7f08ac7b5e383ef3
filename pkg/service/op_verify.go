package service

import (
	"context"
	"io"
	"math"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/replay/verify"
	"pganalytics/pkg/store"
)

var (
	_ verify.Stream  = wholeStream{}
	_ verify.Ledger  = (*store.Store)(nil)
	_ verify.Tables  = tables{}
	_ verify.Letters = (*bus.DeadLetters)(nil)
)

// Verify finds out whether everything that was accepted is where it belongs. It
// changes nothing.
func (i *Installation) Verify(ctx context.Context, req verify.Request, stderr io.Writer) (verify.Report, error) {
	b, err := i.Bus(ctx, stderr)
	if err != nil {
		return verify.Report{}, err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	st, err := i.Store(ctx, stderr)
	if err != nil {
		return verify.Report{}, err
	}
	defer st.Close()
	if err := i.reaches(ctx, st); err != nil {
		return verify.Report{}, err
	}
	v := verify.Verifier{Stream: wholeStream{b}, Ledger: st, Tables: tables{st}, Letters: b.DeadLetters()}
	return v.Run(ctx, req)
}

// reaches errs unless the database answers within the timeout. It writes
// nothing: a command is no ingester, whose progress is written down.
func (i *Installation) reaches(ctx context.Context, st *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	_, _, err := st.AckFloor(ctx, "")
	return err
}

// wholeStream is all of the stream.
type wholeStream struct{ bus *bus.Bus }

// Acked returns the sequence up to which everything is acknowledged.
func (w wholeStream) Acked(ctx context.Context) (string, uint64, error) {
	status, err := w.bus.Status(ctx)
	return status.Incarnation, status.AckFloor, err
}

// All returns a reader of all that is on the stream now.
func (w wholeStream) All(ctx context.Context) (string, ingester.Reader, error) {
	r, err := w.bus.Reader(ctx, 1, math.MaxUint64)
	if err != nil {
		return "", nil, err
	}
	return r.Incarnation(), r, nil
}

// tables are the store's, in the verification's terms.
type tables struct{ store *store.Store }

// Compare compares them with the ledger.
func (t tables) Compare(ctx context.Context, from, to time.Time, collectors []uuid.UUID, mismatch func(verify.Mismatch) error) ([]verify.Family, error) {
	compared, err := t.store.Compare(ctx, from, to, collectors, func(m store.Mismatch) error { return mismatch(verify.Mismatch(m)) })
	if err != nil {
		return nil, err
	}
	families := make([]verify.Family, len(compared))
	for i, c := range compared {
		families[i] = verify.Family(c)
	}
	return families, nil
}
