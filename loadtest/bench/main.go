// Command bench measures the line from the HTTP push to the committed row
// against a plain COPY of the same rows: same machine, same run, same
// hypertable, same number of connections. Run by run the two take turns, so
// that a machine whose speed drifts drifts for both.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"pganalytics/pkg/daemon"
)

// connections to the database, of the ingester and of the baseline.
const connections = 2

// senders push at once; two keep the gateway busy while others wait for the
// stream's acknowledgement.
const senders = 8

func main() {
	runs := flag.Int("runs", 5, "measured runs of each kind, after one that is not counted")
	scale := flag.Float64("scale", 1, "share of the batches of a full run")
	flag.Parse()
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	if err := bench(ctx, *runs, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, runs int, scale float64) (err error) {
	s, err := startSystem(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := s.stop(); err == nil {
			err = e
		}
	}()
	rnd := rand.New(rand.NewPCG(1, 2)) // the same rows in every run
	var ratios []string
	for _, shape := range shapes {
		shape.batches = max(1, int(float64(shape.batches)*scale))
		r, err := s.measure(ctx, shape, shape.payloads(shape.batches, rnd), runs)
		if err != nil {
			return err
		}
		r.print(shape)
		if err := s.profile(ctx, shape, rnd); err != nil {
			return err
		}
		ratios = append(ratios, fmt.Sprintf("ratio_%s=%.2f", shape.name, median(r.ratios)))
	}
	peak, err := s.peakMemory()
	if err != nil {
		return err
	}
	fmt.Printf("\npeak memory of the process with gateway, stream and ingester: %d MiB\n", peak>>20)
	for _, line := range ratios {
		fmt.Println(line)
	}
	return nil
}

// result holds one figure per run.
type result struct {
	line, copied []float64 // rows/s
	ratios       []float64
	cpu          []usage // of the line, per row
}

// measure runs line and baseline in turn.
func (s *system) measure(ctx context.Context, sh shape, loads []payload, runs int) (result, error) {
	var r result
	rows := float64(sh.rows * len(loads))
	for i := range runs + 1 {
		before, err := s.usage()
		if err != nil {
			return r, err
		}
		line, err := s.pushAll(ctx, sh, loads)
		if err != nil {
			return r, fmt.Errorf("%s: %w", sh.name, err)
		}
		after, err := s.usage()
		if err != nil {
			return r, err
		}
		copied, err := s.copyAll(ctx, sh, loads)
		if err != nil {
			return r, fmt.Errorf("%s: baseline: %w", sh.name, err)
		}
		if err := s.checkCount(ctx, sh, 2*(i+1)*sh.rows*len(loads)); err != nil {
			return r, err
		}
		if i == 0 {
			continue // chunks are made, pools filled, caches warmed
		}
		r.line = append(r.line, rows/line.Seconds())
		r.copied = append(r.copied, rows/copied.Seconds())
		r.ratios = append(r.ratios, copied.Seconds()/line.Seconds())
		r.cpu = append(r.cpu, after.sub(before).per(rows))
	}
	return r, nil
}

func (r result) print(sh shape) {
	fmt.Printf("\n%s: %d rows a batch, %d value columns, medians of %d\n", sh.name, sh.rows, sh.values, len(r.line))
	fmt.Printf("  push to commit  %8.0f rows/s\n", median(r.line))
	fmt.Printf("  plain COPY      %8.0f rows/s\n", median(r.copied))
	fmt.Printf("  ratio           %8.2f  (%.2f to %.2f)\n", median(r.ratios), slices.Min(r.ratios), slices.Max(r.ratios))
	of := func(f func(usage) time.Duration) time.Duration {
		var v []float64
		for _, u := range r.cpu {
			v = append(v, float64(f(u)))
		}
		return time.Duration(median(v))
	}
	fmt.Printf("  CPU per row     sender %v, gateway with stream and ingester %v, PostgreSQL %v\n",
		of(func(u usage) time.Duration { return u.sender }),
		of(func(u usage) time.Duration { return u.serve }),
		of(func(u usage) time.Duration { return u.postgres }))
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
