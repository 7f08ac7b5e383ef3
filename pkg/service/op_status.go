package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/health"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/store"
)

const (
	// activeWithin is how long ago a collector's last batch may have been
	// stored, as authsvc has it with its own default.
	activeWithin = 3 * time.Minute
	// endsWithin is the rest of a certificate's life at which something is
	// wrong: collectors renew theirs days before.
	endsWithin = 24 * time.Hour
	// readOnlyState is the SQLSTATE of a database that takes no writes.
	readOnlyState = "25006"
)

// Look asks stream and database how they are, at once. What does not answer
// within Timeout is told by the facts; an error means that neither did, or that
// they cannot be asked.
func Look(ctx context.Context, in *Installation, stderr io.Writer) (health.Facts, error) {
	if _, err := in.Database.URL(); err != nil {
		return health.Facts{}, err
	}
	if _, err := in.Endpoints(); err != nil && in.NATS.URL == "" {
		return health.Facts{}, fmt.Errorf("address of NATS (or give --nats-url): %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*in.Timeout) // each part has its own
	defer cancel()
	stream := make(chan error, 1)
	var f health.Facts
	go func() {
		var err error
		f.Stream, err = LookAtStream(ctx, in, stderr)
		stream <- err
	}()
	databaseErr := lookAtDatabase(ctx, in, &f)
	streamErr := <-stream
	if streamErr != nil && databaseErr != nil {
		return f, fmt.Errorf("neither NATS nor the database answers: %s; %s", oneLine(streamErr), oneLine(databaseErr))
	}
	f.StreamError, f.DatabaseError = oneLine(streamErr), oneLine(databaseErr)
	var err error
	f.Serve, err = lookAtServe(ctx, in)
	return f, err
}

// LookAtStream asks the stream alone.
func LookAtStream(ctx context.Context, in *Installation, stderr io.Writer) (*health.Stream, error) {
	b, err := in.Bus(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	o, err := b.Overview(ctx)
	if err != nil {
		return nil, err
	}
	s := streamFacts(&o)
	if err := b.Guard(ctx); fault.ClassOf(err) == fault.Unavailable {
		return nil, err
	} else if err != nil {
		s.Faults = oneLine(err)
	}
	return s, nil
}

func streamFacts(o *bus.Overview) *health.Stream {
	s := &health.Stream{
		Batches: o.Messages, Bytes: o.Bytes, MaxBytes: o.MaxBytes, FirstSequence: o.FirstSequence, LastSequence: o.LastSequence,
		Backlog: o.LastSequence - min(o.LastSequence, o.AckFloor), Lag: health.Span(o.Unstored), AckPending: o.AckPending,
		Redelivered: o.Redelivered, Inflow: o.Inflow, Holds: []health.Hold{}, Behind: o.Behind, Copies: o.Replicas, DeadLetters: o.DeadLetters,
	}
	keep := o.AckFloor + 1
	for _, h := range o.Holds {
		keep = min(keep, h.From)
		s.Holds = append(s.Holds, health.Hold{Name: h.Name, From: h.From, To: h.To, Reason: h.Reason, By: h.By, Age: health.Span(o.At.Sub(h.Since))})
	}
	if o.Messages > 0 {
		s.Window = health.Span(o.At.Sub(o.FirstTime))
		kept := o.LastSequence + 1 - min(max(keep, o.FirstSequence), o.LastSequence+1)
		s.Kept = uint64(float64(o.Bytes) / float64(o.LastSequence+1-o.FirstSequence) * float64(kept))
	}
	if o.Inflow > 0 {
		left := max(0, float64(o.MaxBytes)-float64(o.Bytes)) / o.Inflow
		full := health.Span(min(left, time.Duration(1<<62).Seconds()) * float64(time.Second))
		s.FullIn = &full
	}
	return s
}

func lookAtDatabase(ctx context.Context, in *Installation, f *health.Facts) error {
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	st, err := in.Store(ctx, io.Discard) // what it has to say is in the error
	if err != nil {
		return err
	}
	defer st.Close()
	v, err := st.Vitals(ctx)
	if store.SQLState(err) == readOnlyState { // a session cannot even be prepared there
		f.Database = &health.Database{ReadOnly: true}
		return nil
	}
	if err != nil {
		return err
	}
	counted, err := lookAtCollectors(ctx, in)
	if err != nil {
		return err
	}
	f.Collectors = counted
	f.Database = &health.Database{Version: v.Version, ReadOnly: v.ReadOnly, SizeBytes: v.SizeBytes, Ingesters: v.Ingesters}
	if !v.LastLoad.IsZero() {
		ago := health.Span(v.At.Sub(v.LastLoad))
		f.Database.LastLoad = &ago
	}
	return nil
}

func lookAtCollectors(ctx context.Context, in *Installation) (*health.Collectors, error) {
	url, err := in.Database.URL()
	if err != nil {
		return nil, err
	}
	people, err := pgstore.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	defer people.Close()
	t, err := people.TallyCollectors(ctx, activeWithin, endsWithin)
	if err != nil {
		return nil, err
	}
	return &health.Collectors{
		Registered: t.ByStatus[identity.Registered], Active: t.ByStatus[identity.Active], Offline: t.ByStatus[identity.Offline],
		Disabled: t.ByStatus[identity.Disabled], Locked: t.ByStatus[identity.Locked], Expiring: t.Expiring,
	}, nil
}

// lookAtServe asks the serve of the data directory, if one ever ran here.
func lookAtServe(ctx context.Context, in *Installation) (*health.Serve, error) {
	e, err := in.Endpoints()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no serve on this host, as said by Facts
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Admin+"/readyz", http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return &health.Serve{Detail: "it does not answer"}, nil
	}
	defer func() { _ = answer.Body.Close() }()
	said, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err != nil || answer.StatusCode != http.StatusOK {
		return &health.Serve{Detail: strings.Join(strings.Fields(string(said)), " ")}, nil
	}
	return &health.Serve{Ready: true}, nil
}

// oneLine is an error for one screen; "" for none.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// CountIngesters returns how many ingesters the database has seen within the
// last minute; nil when it does not answer.
func CountIngesters(ctx context.Context, in *Installation) *int {
	var f health.Facts
	if err := lookAtDatabase(ctx, in, &f); err != nil || f.Database.ReadOnly {
		return nil
	}
	return &f.Database.Ingesters
}
