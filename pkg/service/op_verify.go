package service

import (
	"context"
	"io"
	"math"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/replay/verify"
	"pganalytics/pkg/store"
)

var (
	_ verify.Stream  = wholeStream{}
	_ verify.Ledger  = (*store.Store)(nil)
	_ verify.Tables  = tables{}
	_ verify.Letters = (*bus.DeadLetters)(nil)
)

// VerifyRequest says what to verify.
type VerifyRequest struct {
	verify.Request
	Fix bool   // replay what is replayable, and verify again
	By  string // who does, for the audit
}

// Verify finds out whether everything that was accepted is where it belongs,
// and without Fix changes nothing. With Fix the result is that of the replay,
// without an ID if there was none; after its error the report is that of before.
func (i *Installation) Verify(ctx context.Context, req VerifyRequest, con ReplayConsole) (r verify.Report, res replay.Result, err error) {
	r, err = i.verify(ctx, req.Request, con.Stderr)
	if err != nil || !req.Fix || r.ReplayFrom == 0 {
		return r, res, err
	}
	// To the end of the stream, which may be more than what was asked about: what
	// is stored already is skipped. What is gone from it was reported as lost.
	_, res, err = i.Replay(ctx, ReplayRequest{
		FromSequence: r.ReplayFrom, Selection: replay.Selection{Collectors: req.Collectors}, AllowPartial: true, By: req.By,
	}, con)
	if err != nil {
		return r, res, err
	}
	r, err = i.verify(ctx, req.Request, con.Stderr)
	return r, res, err
}

func (i *Installation) verify(ctx context.Context, req verify.Request, stderr io.Writer) (verify.Report, error) {
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
	v := Verifier(b, st)
	return v.Run(ctx, req)
}

// Verifier returns a verifier of one stream and one database.
func Verifier(b *bus.Bus, st *store.Store) verify.Verifier {
	return verify.Verifier{Stream: wholeStream{b}, Ledger: st, Tables: tables{st}, Letters: b.DeadLetters()}
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

// Acked tells how far the shared consumer is.
func (w wholeStream) Acked(ctx context.Context) (verify.Acked, error) {
	s, err := w.bus.Status(ctx)
	return verify.Acked{Incarnation: s.Incarnation, Floor: s.AckFloor, Delivered: s.Delivered, Pending: uint64(max(0, s.AckPending))}, err
}

// All returns a reader of what is on the stream now that arrived since then,
// zero for everything.
func (w wholeStream) All(ctx context.Context, since time.Time) (string, ingester.Reader, error) {
	first := uint64(1)
	if !since.IsZero() {
		var err error
		if first, err = w.bus.SequenceAt(ctx, since); err != nil {
			return "", nil, err
		}
	}
	r, err := w.bus.Reader(ctx, first, math.MaxUint64)
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
