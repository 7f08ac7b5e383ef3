package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"pganalytics/loadtest/internal/program"
)

// scenario is one way to drain a backlog of narrow rows.
type scenario struct {
	name      string
	rows      int
	batch     int // rows per batch
	loaders   int // per ingester
	ingesters int
}

// scenarios vary one thing at a time. In batches of 10 there are fewer rows, for
// each costs a sync to fill the stream.
var scenarios = []scenario{
	{"backlog 1M", 1_000_000, 1000, 2, 1},
	{"backlog 10M", 10_000_000, 1000, 2, 1},
	{"batch 10", 400_000, 10, 2, 1},
	{"batch 100", 1_000_000, 100, 2, 1},
	{"batch 10000", 1_000_000, 10_000, 2, 1},
	{"loaders 1", 1_000_000, 1000, 1, 1},
	{"loaders 4", 1_000_000, 1000, 4, 1},
	{"ingesters 1", 2_000_000, 1000, 2, 1},
	{"ingesters 2", 2_000_000, 1000, 2, 2},
	{"ingesters 4", 2_000_000, 1000, 2, 4},
}

// ingesterMiB is what an ingester may hold at most, whatever the backlog.
const ingesterMiB = 160

func benchDrain(ctx context.Context, o options) (err error) {
	chosen := make([]scenario, 0, len(scenarios))
	for _, sc := range scenarios {
		sc.rows = max(sc.batch, int(float64(sc.rows)*o.scale))
		if strings.Contains(sc.name, o.only) {
			chosen = append(chosen, sc)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no scenario's name holds %q", o.only)
	}
	b, err := newWorkbench()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	for _, sc := range chosen {
		if err := b.prepare(ctx, sc); err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	runs := map[string][]drained{}
	for round := range o.runs { // each scenario once a round, so that drift hits all alike
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.runs)
		for _, sc := range chosen {
			d, err := b.drainNew(ctx, sc)
			if err != nil {
				return fmt.Errorf("%s: %w", sc.name, err)
			}
			runs[sc.name] = append(runs[sc.name], d)
		}
	}
	fmt.Printf("\nnarrow rows, medians of %d (least to most); CPU of ingesters and PostgreSQL\n", o.runs)
	fmt.Printf("%-12s %9s %28s %19s %19s %10s %21s %s\n", "", "batches", "rows/s", "CPU per row", "CPU per batch", "peak", "resident at quarters", "rows by ingester")
	for _, sc := range chosen {
		printDrained(sc, runs[sc.name])
	}
	return flatness(runs).verdict(o)
}

// flatness holds the large backlog against the small one.
func flatness(runs map[string][]drained) *gates {
	g := &gates{}
	small, large := runs["backlog 1M"], runs["backlog 10M"]
	if len(small) > 0 && len(large) > 0 {
		ratio := median(each(large, drained.rate)) / median(each(small, drained.rate))
		fmt.Printf("rows/s of 10M against 1M: %.2f\n", ratio)
		g.check(ratio >= 0.9, "10M rows drain at %.2f of the rate of 1M, below 0.90", ratio)
	}
	for name, all := range runs {
		peak := slices.Max(each(all, func(d drained) float64 { return float64(d.peak) / (1 << 20) }))
		g.check(peak <= ingesterMiB, "%s: ingester of %.0f MiB, above %d", name, peak, ingesterMiB)
	}
	return g
}

// drained is what one run took, from a tenth of the batches to nine tenths: at
// the beginning tables are made, and at the end loaders wait for more to come.
type drained struct {
	rows, batches float64
	took          time.Duration
	cpu           usage
	peak          int64    // of the largest ingester, resident bytes
	quarters      [4]int64 // at 25, 50, 75 and 100 %, of the largest at that time
	shares        []float64
}

func (d drained) rate() float64 { return d.rows / d.took.Seconds() }

// drainNew drains the scenario's backlog into a database of its own.
func (b *workbench) drainNew(ctx context.Context, sc scenario) (d drained, err error) {
	db, err := newDatabase(ctx)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	return b.drain(ctx, sc, db)
}

// drain starts the ingesters, has them all wait, and measures from the first
// batch handed out until the last is acknowledged.
func (b *workbench) drain(ctx context.Context, sc scenario, db *database) (d drained, err error) {
	l := b.backlogs[[2]int{sc.rows, sc.batch}]
	if err := l.hold(ctx); err != nil {
		return d, err
	}
	var running []*program.Process
	defer func() { err = errors.Join(err, program.Stop(running...)) }()
	for i := range sc.ingesters {
		p, err := program.Start(b.dir, fmt.Sprintf("ingester%d", i), db.url(), "ingester", append(l.flags(),
			"--catalogue-dir", b.families, "--loaders", fmt.Sprint(sc.loaders))...)
		if err != nil {
			return d, err
		}
		running = append(running, p)
	}
	if err := l.awaitLoaders(ctx, sc.ingesters*sc.loaders); err != nil {
		return d, fmt.Errorf("%w\n%s", err, running[0].Tail())
	}
	if err := l.release(ctx); err != nil {
		return d, err
	}
	if d, err = l.follow(ctx, meter{running, db.postgres}); err != nil {
		return d, err
	}
	for _, p := range running {
		stored, err := p.Metric(ctx, "pganalytics_ingester_rows_stored_total")
		if err != nil {
			return d, err
		}
		d.shares = append(d.shares, stored/float64(l.rows()))
		peak, err := memory(p.PID(), residentPeak)
		if err != nil {
			return d, err
		}
		d.peak = max(d.peak, peak)
	}
	return d, db.checkCount(ctx, l.shape.family, l.rows())
}

// followEvery is how exactly progress is seen: far below what is measured.
const followEvery = 5 * time.Millisecond

// mark is a moment of a run.
type mark struct {
	at    time.Time
	acked uint64
	used  usage
}

// follow waits until every batch is acknowledged, which is after its commit.
func (b *backlog) follow(ctx context.Context, m meter) (d drained, err error) {
	var marks []mark // at one tenth and at nine
	quarter, last := 0, uint64(0)
	for moved := time.Now(); ; time.Sleep(followEvery) {
		st, err := b.bus.Status(ctx)
		if err != nil {
			return d, err
		}
		if len(marks) < 2 && st.AckFloor*10 >= st.LastSequence*uint64(1+8*len(marks)) {
			used, err := m.read()
			if err != nil {
				return d, err
			}
			marks = append(marks, mark{time.Now(), st.AckFloor, used})
		}
		for quarter < 4 && st.AckFloor*4 >= st.LastSequence*uint64(quarter+1) {
			if d.quarters[quarter], err = m.resident(); err != nil {
				return d, err
			}
			quarter++
		}
		switch {
		case st.AckFloor == st.LastSequence && len(marks) == 2:
			from, to := marks[0], marks[1]
			d.batches = float64(to.acked - from.acked)
			d.rows = d.batches * float64(b.shape.rows)
			d.took, d.cpu = to.at.Sub(from.at), to.used.sub(from.used)
			return d, nil
		case st.AckFloor != last:
			last, moved = st.AckFloor, time.Now()
		case time.Since(moved) > time.Minute:
			return d, fmt.Errorf("stuck at batch %d of %d\n%s", st.AckFloor, st.LastSequence, m.services[0].Tail())
		}
	}
}

// resident is the size of the largest service now, in bytes.
func (m meter) resident() (most int64, err error) {
	for _, p := range m.services {
		n, err := memory(p.PID(), residentNow)
		if err != nil {
			return 0, err
		}
		most = max(most, n)
	}
	return most, nil
}

func printDrained(sc scenario, runs []drained) {
	cpu := func(n func(drained) float64) string {
		u := medianUsage(each(runs, func(d drained) usage { return d.cpu.per(n(d)) }))
		return fmt.Sprintf("%v + %v", brief(u.services), brief(u.postgres))
	}
	mib := func(f func(drained) int64) string {
		return fmt.Sprintf("%.0f", median(each(runs, func(d drained) float64 { return float64(f(d)) / (1 << 20) })))
	}
	var quarters, shares []string
	for q := range 4 {
		quarters = append(quarters, mib(func(d drained) int64 { return d.quarters[q] }))
	}
	for i := range sc.ingesters {
		shares = append(shares, fmt.Sprintf("%.0f%%", 100*median(each(runs, func(d drained) float64 { return slices.Sorted(slices.Values(d.shares))[i] }))))
	}
	fmt.Printf("%-12s %9.0f %28s %19s %19s %6s MiB %17s MiB %s\n", sc.name, float64(sc.rows/sc.batch), spread("%.0f", each(runs, drained.rate)),
		cpu(func(d drained) float64 { return d.rows }), cpu(func(d drained) float64 { return d.batches }),
		mib(func(d drained) int64 { return d.peak }), strings.Join(quarters, " "), strings.Join(shares, " "))
}
