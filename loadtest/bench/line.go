package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pganalytics/loadtest/internal/fleet"
)

// senders push at once; enough to keep the gateway busy while others wait for
// the stream's acknowledgement.
const senders = 8

func benchLine(ctx context.Context, o options) (err error) {
	s, err := startSystem(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	rnd := rand.New(rand.NewPCG(1, 2)) // the same rows in every run
	var g gates
	var ratios []string
	for _, shape := range shapes {
		if !strings.Contains(shape.name, o.only) {
			continue
		}
		shape.batches = max(1, int(float64(shape.batches)*o.scale))
		runs, err := s.measure(ctx, shape, shape.payloads(shape.batches, rnd), o.runs)
		if err != nil {
			return fmt.Errorf("%s: %w", shape.name, err)
		}
		printLine(shape, runs)
		if err := s.profile(ctx, shape, rnd, o.pprof); err != nil {
			return err
		}
		ratio := median(each(runs, lineRun.ratio))
		g.check(ratio >= shape.gate, "ratio_%s is %.2f, below %.2f", shape.name, ratio, shape.gate)
		ratios = append(ratios, fmt.Sprintf("ratio_%s=%.2f", shape.name, ratio))
	}
	peak, err := memory(s.serve.PID(), residentPeak)
	if err != nil {
		return err
	}
	fmt.Printf("\npeak memory of the process with gateway, stream and ingester: %d MiB\n", peak>>20)
	for _, line := range ratios {
		fmt.Println(line)
	}
	return g.verdict(o)
}

// lineRun is what one run of the line and of the baseline took.
type lineRun struct {
	rows               float64
	line, copied       time.Duration
	lineCPU, copiedCPU usage
}

func (r lineRun) ratio() float64     { return r.copied.Seconds() / r.line.Seconds() }
func (r lineRun) cpuRatio() float64  { return r.copiedCPU.sum().Seconds() / r.lineCPU.sum().Seconds() }
func (r lineRun) lineRate() float64  { return r.rows / r.line.Seconds() }
func (r lineRun) plainRate() float64 { return r.rows / r.copied.Seconds() }

// measure runs line and baseline in turn, once more than it counts: in the
// first run chunks are made, pools filled and caches warmed.
func (s *system) measure(ctx context.Context, sh shape, loads []payload, runs int) ([]lineRun, error) {
	var all []lineRun
	for i := range runs + 1 {
		r := lineRun{rows: float64(sh.rows * len(loads))}
		base := time.Now().UTC().Truncate(time.Microsecond).Add(-loads[len(loads)-1].after)
		streams := s.copyStreams(sh, loads, base)
		pushes, err := s.prepare(sh, loads, base)
		if err != nil {
			return nil, err
		}
		var marks [3]usage
		if marks[0], err = s.meter.read(); err != nil {
			return nil, err
		}
		if r.line, err = s.pushAll(ctx, pushes); err != nil {
			return nil, err
		}
		if marks[1], err = s.meter.read(); err != nil {
			return nil, err
		}
		if r.copied, err = s.copyAll(ctx, sh.copyStatement(), streams); err != nil {
			return nil, fmt.Errorf("baseline: %w", err)
		}
		if marks[2], err = s.meter.read(); err != nil {
			return nil, err
		}
		if err := s.db.checkCount(ctx, sh.family, 2*(i+1)*sh.rows*len(loads)); err != nil {
			return nil, err
		}
		r.lineCPU, r.copiedCPU = marks[1].sub(marks[0]), marks[2].sub(marks[1])
		all = append(all, r)
	}
	return all[1:], nil
}

func printLine(sh shape, runs []lineRun) {
	fmt.Printf("\n%s: %d rows a batch, %d value columns, %d servers, medians of %d (least to most)\n", sh.name, sh.rows, sh.values, servers, len(runs))
	fmt.Printf("  push to commit  %s rows/s\n", spread("%.0f", each(runs, lineRun.lineRate)))
	fmt.Printf("  plain COPY      %s rows/s\n", spread("%.0f", each(runs, lineRun.plainRate)))
	fmt.Printf("  ratio           %s, gate %.2f, target %.2f\n", spread("%.2f", each(runs, lineRun.ratio)), sh.gate, sh.target)
	row := medianUsage(each(runs, func(r lineRun) usage { return r.lineCPU.per(r.rows) }))
	plain := medianUsage(each(runs, func(r lineRun) usage { return r.copiedCPU.per(r.rows) }))
	batch := row.per(1 / float64(sh.rows))
	fmt.Printf("  ratio of CPU    %s: what the ratio would be if nothing ever waited\n", spread("%.2f", each(runs, lineRun.cpuRatio)))
	fmt.Printf("  CPU per row     sender %v, gateway with stream and ingester %v, PostgreSQL %v; of plain COPY, PostgreSQL %v\n",
		brief(row.bench), brief(row.services), brief(row.postgres), brief(plain.postgres))
	fmt.Printf("  CPU per batch   sender %v, gateway with stream and ingester %v, PostgreSQL %v\n", brief(batch.bench), brief(batch.services), brief(batch.postgres))
}

// pushes is every payload of a run, to be pushed once.
type pushes struct {
	since time.Time // no batch is sent before
	n     int
	one   func(ctx context.Context, buf []byte, i int) ([]byte, error) // pushes the i-th; buf is a sender's own
}

// prepare makes the pushes of a run. Bodies in JSON are made as they are pushed.
func (s *system) prepare(sh shape, loads []payload, base time.Time) (pushes, error) {
	p := pushes{since: time.Now(), n: len(loads)}
	p.one = func(ctx context.Context, buf []byte, i int) ([]byte, error) {
		buf, err := pushBody(buf[:0], s.sender.ID, sh, loads[i], base.Add(loads[i].after))
		if err != nil {
			return buf, err
		}
		return buf, s.sender.Push(ctx, buf, sh.rows)
	}
	if !sh.native {
		return p, nil
	}
	bodies, err := sh.bodies(s.sender.ID, loads, base)
	p.one = func(ctx context.Context, _ []byte, i int) ([]byte, error) {
		return nil, s.sender.Push(ctx, bodies[i], sh.rows, fleet.Native...)
	}
	return p, err
}

// pushAll pushes every payload once and returns the time until the last row
// was committed.
func (s *system) pushAll(ctx context.Context, p pushes) (time.Duration, error) {
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for n := range senders {
		g.Go(func() error {
			var buf []byte
			var err error
			for i := n; i < p.n; i += senders {
				if buf, err = p.one(gctx, buf, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	if err := s.awaitStored(ctx, p); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// awaitStored waits until all are stored.
func (s *system) awaitStored(ctx context.Context, p pushes) error {
	// A batch's time is that of its id, in milliseconds.
	since, deadline := p.since.Truncate(time.Millisecond), time.Now().Add(2*time.Minute)
	for {
		stored, err := s.db.number(ctx, "select count(*) from ingest.batch where sent_at >= $1", since)
		if err != nil || stored == p.n {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d batches stored after two minutes", stored, p.n)
		}
		time.Sleep(5 * time.Millisecond) // far below what is measured
	}
}
