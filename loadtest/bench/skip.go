package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// skipGate is what a batch that is stored already may cost, as a share of
// storing it.
const skipGate = 0.05

// benchSkip drains a backlog and then, from its beginning, drains it again into
// the same database.
func benchSkip(ctx context.Context, o options) (err error) {
	b, err := newWorkbench()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	g := gates{}
	for _, sc := range []scenario{
		{"1000 rows a batch", 2_000_000, 1000, 2, 1},
		{"100 rows a batch", 1_000_000, 100, 2, 1},
		{"10 rows a batch", 400_000, 10, 2, 1},
	} {
		sc.rows = max(sc.batch, int(float64(sc.rows)*o.scale))
		if err := b.prepare(ctx, sc); err != nil {
			return err
		}
		stored, skipped, err := b.skip(ctx, sc, o.runs)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		perBatch := func(d drained) float64 { return float64(d.took.Microseconds()) / d.batches }
		cpu := func(d drained) float64 {
			return float64((d.cpu.services + d.cpu.postgres).Microseconds()) / d.batches
		}
		times, cpus := make([]float64, o.runs), make([]float64, o.runs)
		for i := range o.runs {
			times[i], cpus[i] = perBatch(skipped[i])/perBatch(stored[i]), cpu(skipped[i])/cpu(stored[i])
		}
		fmt.Printf("\n%s, %.0f batches, medians of %d\n", sc.name, float64(sc.rows/sc.batch), o.runs)
		for _, kind := range []struct {
			name string
			runs []drained
		}{{"stored", stored}, {"skipped", skipped}} {
			u := medianUsage(each(kind.runs, func(d drained) usage { return d.cpu.per(d.batches) }))
			fmt.Printf("  %-8s %v a batch; CPU of ingester %v, PostgreSQL %v\n",
				kind.name, micros(median(each(kind.runs, perBatch))), brief(u.services), brief(u.postgres))
		}
		fmt.Printf("  share    %s of the time, %s of the CPU\n", spread("%.3f", times), spread("%.3f", cpus))
		if sc.batch == 1000 {
			g.check(median(times) <= skipGate, "skipping takes %.3f of storing, above %.2f", median(times), skipGate)
		}
	}
	return g.verdict(o)
}

func micros(us float64) time.Duration {
	return brief(time.Duration(us * float64(time.Microsecond)))
}

func (b *workbench) skip(ctx context.Context, sc scenario, runs int) (stored, skipped []drained, err error) {
	for range runs {
		db, err := newDatabase(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, all := range []*[]drained{&stored, &skipped} {
			d, err := b.drain(ctx, sc, db)
			if err != nil {
				return nil, nil, errors.Join(err, db.drop())
			}
			*all = append(*all, d)
		}
		if err := db.drop(); err != nil {
			return nil, nil, err
		}
	}
	return stored, skipped, nil
}
