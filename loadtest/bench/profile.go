package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
)

// profileTime is how long serve is profiled under load.
const profileTime = 4 * time.Second

// stages tell whose work a sample is, by the functions on its stack. The first
// that matches counts.
var stages = []struct{ name, function string }{
	{"collect garbage", "runtime.gcBgMarkWorker"},
	{"inflate", "github.com/klauspost/compress/zstd."},
	{"decode JSON", "pganalytics/pkg/batch/jsonpush."},
	{"walk", "pganalytics/pkg/batch/native.(*section)"},
	{"read body", "pganalytics/pkg/batch/native.readBody"},
	{"publish", "pganalytics/pkg/bus.(*Publisher)"},
	{"seal and marshal", "pganalytics/pkg/batch."},
	{"store", "pganalytics/pkg/store."},
	{"ingest", "pganalytics/pkg/ingester."},
	{"fetch and ack", "pganalytics/pkg/bus."},
	{"stream", "github.com/nats-io/nats-server"},
	{"stream's client", "github.com/nats-io/nats.go"},
	{"HTTP and TLS", "net/http."},
	{"TLS", "crypto/tls."},
}

// profile pushes once more while serve is profiled, and prints where its CPU
// time went. With a dir the profile is kept there, for go tool pprof.
func (s *system) profile(ctx context.Context, sh shape, rnd *rand.Rand, dir string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", s.serve.Admin, int(profileTime.Seconds())), nil)
	if err != nil {
		return err
	}
	loads := sh.payloads(sh.batches, rnd)
	base := time.Now().Add(-loads[len(loads)-1].after)
	first, err := s.prepare(sh, loads, base)
	if err != nil {
		return err
	}
	type answer struct {
		profile *profile.Profile
		err     error
	}
	profiled := make(chan answer, 1)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			profiled <- answer{err: err}
			return
		}
		defer func() { _ = res.Body.Close() }()
		p, err := profile.Parse(res.Body)
		profiled <- answer{p, err}
	}()
	start := time.Now()
	for p := first; ; {
		if _, err := s.pushAll(ctx, p); err != nil {
			return err
		}
		if time.Since(start) > profileTime {
			break
		}
		if p, err = s.prepare(sh, loads, base); err != nil {
			return err
		}
	}
	got := <-profiled
	if got.err != nil {
		return fmt.Errorf("profile of serve: %w", got.err)
	}
	printStages(got.profile)
	if dir == "" {
		return nil
	}
	file, err := os.Create(filepath.Join(dir, sh.name+".pprof"))
	if err != nil {
		return err
	}
	return errors.Join(got.profile.Write(file), file.Close())
}

func printStages(p *profile.Profile) {
	sum := map[string]int64{}
	total := int64(0)
	for _, sample := range p.Sample {
		nanos := sample.Value[len(sample.Value)-1]
		sum[stageOf(sample)] += nanos
		total += nanos
	}
	names := make([]string, 0, len(sum))
	for name := range sum {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(sum[b] - sum[a]) })
	fmt.Print("  of that of gateway, stream and ingester:")
	for i, name := range names {
		if i > 0 {
			fmt.Print(",")
		}
		fmt.Printf(" %s %.0f %%", name, 100*float64(sum[name])/float64(max(total, 1)))
	}
	fmt.Println()
}

func stageOf(sample *profile.Sample) string {
	for _, stage := range stages {
		for _, loc := range sample.Location {
			for _, line := range loc.Line {
				if strings.HasPrefix(line.Function.Name, stage.function) {
					return stage.name
				}
			}
		}
	}
	return "runtime"
}
