package service

import (
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/policy/pulled"
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
	Fix bool   // replay what is replayable, verify again, and ask collectors for what is lost
	By  string // who does, for the audit
}

// Verify finds out whether everything that was accepted is where it belongs,
// and without Fix changes nothing. With Fix the result is that of the replay,
// without an ID if there was none; after its error the report is that of before.
func (i *Installation) Verify(ctx context.Context, req VerifyRequest, con ReplayConsole) (r verify.Report, res replay.Result, err error) {
	r, err = i.verify(ctx, req.Request, con.Stderr)
	if err != nil || !req.Fix {
		return r, res, err
	}
	if r.ReplayFrom > 0 {
		if r, res, err = i.fix(ctx, req, r, con); err != nil {
			return r, res, err
		}
	}
	return r, res, i.askAgain(ctx, req.By, &r, con.Stderr)
}

// fix replays and verifies again.
func (i *Installation) fix(ctx context.Context, req VerifyRequest, r verify.Report, con ReplayConsole) (verify.Report, replay.Result, error) {
	// To the end of the stream, which may be more than what was asked about: what
	// is stored already is skipped. What is gone from it was reported as lost.
	_, res, err := i.Replay(ctx, ReplayRequest{
		FromSequence: r.ReplayFrom, Selection: replay.Selection{Collectors: req.Collectors}, AllowPartial: true, By: req.By,
	}, con)
	if err != nil {
		return r, res, err
	}
	r, err = i.verify(ctx, req.Request, con.Stderr)
	return r, res, err
}

// askAgain asks collectors for what is lost here: they may still have it.
func (i *Installation) askAgain(ctx context.Context, by string, r *verify.Report, stderr io.Writer) error {
	lost := r.Lost()
	if len(lost) == 0 {
		return nil
	}
	b, err := i.Bus(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	for _, c := range r.Collectors {
		ranges := lost[c.ID]
		if len(ranges) == 0 {
			continue
		}
		asked, err := ask(ctx, b.ConfigBucket(), c.ID, by, ranges[:min(len(ranges), pulled.MaxRanges)])
		if err != nil {
			return fmt.Errorf("ask collector %s to send again: %w", c.ID, err)
		}
		r.Asked = append(r.Asked, asked)
	}
	return nil
}

func ask(ctx context.Context, bucket pulled.Bucket, collector uuid.UUID, by string, ranges []pulled.Range) (verify.Asked, error) {
	state, err := pulled.StateOf(ctx, bucket, collector)
	if err != nil {
		return verify.Asked{}, err
	}
	request, err := pulled.Ask(ctx, bucket, collector, pulled.Resend{ID: uuid.New(), Ranges: ranges, By: by, At: time.Now().UTC()})
	asked := verify.Asked{Collector: collector, Request: request.ID, At: request.At, Before: state.Resent}
	for _, g := range ranges {
		asked.Numbers += g.Last - g.First + 1
	}
	return asked, err
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
