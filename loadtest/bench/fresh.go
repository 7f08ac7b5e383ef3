package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	probeEvery = 50 * time.Millisecond
	// probing is how many probes may be under way at once; a second's worth.
	probing   = 20
	freshTime = 15 * time.Second // of one run

	// The gates: of rows at half load, and of a push against a bare publish.
	freshMedian, freshWorst = 250 * time.Millisecond, time.Second
	pushRatio               = 2.0
)

// benchFresh pushes at half of what the line takes, at a constant rate, and
// meanwhile times pushes of one row until they are answered and visible, pushes
// of a whole batch, and bare publishes of as many bytes onto a stream of the
// same server.
func benchFresh(ctx context.Context, o options) (err error) {
	s, err := startSystem(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	loads := narrow.payloads(narrow.batches, rand.New(rand.NewPCG(1, 2)))
	lines, err := s.measure(ctx, narrow, loads, 3)
	if err != nil {
		return err
	}
	full := median(each(lines, lineRun.lineRate))
	bare, err := s.openBare(ctx)
	if err != nil {
		return err
	}
	defer bare.nc.Close()
	var runs []*latencies
	for range o.runs {
		l := &latencies{}
		if err := s.halfLoad(ctx, l, bare, loads, full/2, time.Duration(float64(freshTime)*o.scale)); err != nil {
			return err
		}
		runs = append(runs, l)
	}
	fmt.Printf("\nhalf load: %.0f of %.0f rows/s in batches of %d, medians of %d (least to most)\n", full/2, full, narrow.rows, o.runs)
	return printLatencies(runs).verdict(o)
}

// latencies are what one run has seen.
type latencies struct {
	mu                                     sync.Mutex
	visible                                []time.Duration // from the 202 to the row in SQL
	pushOne, bareOne, pushBatch, bareBatch []time.Duration
}

func (l *latencies) add(to *[]time.Duration, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*to = append(*to, d)
}

func printLatencies(runs []*latencies) *gates {
	ms := func(q float64, of func(*latencies) []time.Duration) []float64 {
		values := make([]float64, len(runs))
		for i := range runs {
			values[i] = float64(quantile(of(runs[i]), q).Microseconds()) / 1000
		}
		return values
	}
	show := func(name string, of func(*latencies) []time.Duration) {
		fmt.Printf("  %-28s p50 %s ms, p99 %s ms\n", name, spread("%.2f", ms(.5, of)), spread("%.2f", ms(.99, of)))
	}
	visible := func(l *latencies) []time.Duration { return l.visible }
	show("202 to visible", visible)
	g := &gates{}
	p50, p99 := median(ms(.5, visible)), median(ms(.99, visible))
	g.check(p50 <= float64(freshMedian.Milliseconds()), "rows are visible after %.0f ms (p50), above %v", p50, freshMedian)
	g.check(p99 <= float64(freshWorst.Milliseconds()), "rows are visible after %.0f ms (p99), above %v", p99, freshWorst)
	for _, pair := range []struct {
		name       string
		push, bare func(*latencies) []time.Duration
	}{
		{"one row", func(l *latencies) []time.Duration { return l.pushOne }, func(l *latencies) []time.Duration { return l.bareOne }},
		{"a batch", func(l *latencies) []time.Duration { return l.pushBatch }, func(l *latencies) []time.Duration { return l.bareBatch }},
	} {
		show("push of "+pair.name, pair.push)
		show("bare publish of "+pair.name, pair.bare)
		push, bare := ms(.99, pair.push), ms(.99, pair.bare)
		for i := range push {
			push[i] /= bare[i]
		}
		fmt.Printf("  %-28s %s\n", "ratio of p99", spread("%.2f", push))
		g.check(median(push) <= pushRatio, "push of %s takes %.2f of a bare publish (p99), above %.1f", pair.name, median(push), pushRatio)
	}
	return g
}

// halfLoad runs once for the time given, then until every probe is visible.
func (s *system) halfLoad(ctx context.Context, l *latencies, bare *bareStream, loads []payload, rate float64, length time.Duration) error {
	watch := &watch{sent: map[int32]*probe{}, done: make(chan struct{})}
	g, ctx := errgroup.WithContext(ctx)
	one := narrow.withRows(1)
	g.Go(func() error {
		defer close(watch.done)
		return every(ctx, probeEvery, length, probing, func(i int) error { return s.probe(ctx, l, watch, one, int32(i)) })
	})
	g.Go(func() error { return watch.run(ctx, s, l) })
	g.Go(func() error {
		interval := time.Duration(float64(narrow.rows) / rate * float64(time.Second))
		return every(ctx, interval, length, senders, func(i int) error {
			body, err := pushBody(nil, s.sender.ID, narrow, loads[i%len(loads)], time.Now())
			if err != nil {
				return err
			}
			began := time.Now()
			if err := s.sender.Push(ctx, body, narrow.rows); err != nil {
				return err
			}
			l.add(&l.pushBatch, time.Since(began))
			return nil
		})
	})
	g.Go(func() error {
		return every(ctx, probeEvery, length, probing, func(int) error { return bare.publish(ctx, l, &l.bareOne, bare.one) })
	})
	g.Go(func() error {
		return every(ctx, probeEvery, length, probing, func(int) error { return bare.publish(ctx, l, &l.bareBatch, bare.batch) })
	})
	return g.Wait()
}

// every calls f at a constant rate however long it takes, up to so many at
// once, and waits for all.
func every(ctx context.Context, interval, length time.Duration, atOnce int, f func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	start := time.Now()
	for i := range int(length / interval) {
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-time.After(time.Until(start.Add(time.Duration(i) * interval))):
		}
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}
