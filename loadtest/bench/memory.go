package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pganalytics/loadtest/internal/fleet"
	"pganalytics/loadtest/internal/program"
	"pganalytics/pkg/identity/ca"
)

const (
	fleetSize  = 500
	fleetPause = 5 * time.Second // between two batches of a collector in the steady phase
	fleetRows  = 200             // of a batch
	steadyTime = 20 * time.Second
	surgeTime  = 15 * time.Second
	busyPause  = 200 * time.Millisecond // after a 503
	gatewayMiB = 96                     // at most; see ingesterMiB
)

// benchMemory runs gateway, ingester and authsvc as processes of their own,
// with the stream in this one, and measures what they hold while 500 collectors
// are connected: first at their steady pace, then as after an outage, when all
// push at once and go on as fast as they are let.
func benchMemory(ctx context.Context, o options) (err error) {
	s, err := startServices(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	began := time.Now()
	collectors, err := s.fleet.Enrol(ctx, s.db.url(), fleetSize)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d collectors enrolled in %.1f s\n", fleetSize, time.Since(began).Seconds())
	var g gates
	fmt.Printf("\n%d collectors, each over a connection of its own, %d narrow rows a batch\n", fleetSize, fleetRows)
	for _, phase := range []struct {
		name  string
		pause time.Duration
		time  time.Duration
	}{{"steady", fleetPause, steadyTime}, {"surge", 0, surgeTime}} {
		before := s.pushed.Load()
		length := time.Duration(float64(phase.time) * o.scale)
		peaks, err := s.watch(ctx, func(ctx context.Context) error { return s.push(ctx, collectors, phase.pause, length) })
		if err != nil {
			return fmt.Errorf("%s: %w", phase.name, err)
		}
		fmt.Printf("  %-7s %6.0f batches/s, %d answered 503; most resident: gateway %d MiB, ingester %d MiB, authsvc %d MiB\n",
			phase.name, float64(s.pushed.Load()-before)/length.Seconds(), s.busy.Swap(0),
			peaks[0]>>20, peaks[1]>>20, peaks[2]>>20)
		g.check(peaks[0] <= gatewayMiB<<20, "%s: gateway of %d MiB, above %d", phase.name, peaks[0]>>20, gatewayMiB)
		g.check(peaks[1] <= ingesterMiB<<20, "%s: ingester of %d MiB, above %d", phase.name, peaks[1]>>20, ingesterMiB)
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	return g.verdict(o)
}

// services run as in production, but for the stream.
type services struct {
	*workbench
	db                         *database
	backlog                    *backlog // empty at first: the stream of batches
	gateway, ingester, authsvc *program.Process
	fleet                      fleet.Fleet
	pushed, busy               atomic.Int64
}

func startServices(ctx context.Context) (s *services, err error) {
	s = &services{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.workbench, err = newWorkbench(); err != nil {
		return s, err
	}
	if s.db, err = newDatabase(ctx); err != nil {
		return s, err
	}
	pki := filepath.Join(s.dir, "pki")
	if _, err := ca.Init(ca.Options{Dir: pki, TrustDomain: "pganalytics", ServerNames: []string{"127.0.0.1"}}); err != nil {
		return s, err
	}
	if s.backlog, err = s.stream.newBacklog(ctx, "memory", narrow.withRows(fleetRows), 100_000); err != nil {
		return s, err
	}
	const users, collectors = "--users-", "--collectors-"
	listen := func(listener string) []string {
		return []string{
			listener + "listen", "127.0.0.1:0",
			listener + "tls-cert", filepath.Join(pki, ca.ServerCertFile), listener + "tls-key", filepath.Join(pki, ca.ServerKeyFile),
		}
	}
	run := func(name string, args ...[]string) (*program.Process, error) {
		all := s.backlog.flags()
		for _, a := range args {
			all = append(all, a...)
		}
		return program.Start(s.dir, name, s.db.url(), name, all...)
	}
	// The collectors are not told where the gateway is, for it does not run yet:
	// they are sent there below.
	if s.authsvc, err = run("authsvc", listen(users), listen(collectors),
		[]string{"--pki-dir", pki, "--collector-url", "https://gateway.invalid"}); err != nil {
		return s, err
	}
	if s.gateway, err = run("gateway", listen(collectors), []string{
		"--collector-ca", filepath.Join(pki, ca.CollectorCAFile), "--issuer-root", filepath.Join(pki, ca.RootFile), "--catalogue-dir", s.families,
	}); err != nil {
		return s, err
	}
	if s.ingester, err = run("ingester", []string{"--catalogue-dir", s.families}); err != nil {
		return s, err
	}
	return s, s.ready(ctx, pki)
}

// ready waits for all services and tells the fleet where they are.
func (s *services) ready(ctx context.Context, pki string) error {
	auth, err := s.authsvc.Ready(ctx)
	if err != nil {
		return err
	}
	gateway, err := s.gateway.Ready(ctx)
	if err != nil {
		return err
	}
	s.fleet = fleet.Fleet{
		Dir: s.dir, PKI: pki, Users: auth.Users, Tokens: auth.Collectors, Pushes: gateway.Collectors,
		Connections: senders + probing,
	}
	_, err = s.ingester.Ready(ctx)
	return err
}

func (s *services) stop() error {
	var errs []error
	for _, p := range []*program.Process{s.gateway, s.ingester, s.authsvc} {
		if p != nil {
			errs = append(errs, program.Stop(p))
		}
	}
	if s.backlog != nil {
		errs = append(errs, s.backlog.bus.Close(context.Background()))
	}
	if s.workbench != nil {
		errs = append(errs, s.workbench.stop())
	}
	if s.db != nil {
		errs = append(errs, s.db.drop())
	}
	return errors.Join(errs...)
}

// watch runs f and returns the largest resident sizes of gateway, ingester and
// authsvc meanwhile, in bytes.
func (s *services) watch(ctx context.Context, f func(ctx context.Context) error) (peaks [3]int64, err error) {
	g, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	g.Go(func() error {
		defer close(done)
		return f(ctx)
	})
	g.Go(func() error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for i, p := range []*program.Process{s.gateway, s.ingester, s.authsvc} {
				resident, err := memory(p.PID(), residentNow)
				if err != nil {
					return err
				}
				peaks[i] = max(peaks[i], resident)
			}
			select {
			case <-done:
				return nil
			case <-tick.C:
			}
		}
	})
	err = g.Wait()
	return peaks, err
}

// push lets every collector push for the time given, with pauses that begin at
// different moments.
func (s *services) push(ctx context.Context, collectors []*fleet.Sender, pause, length time.Duration) error {
	g, ctx := errgroup.WithContext(ctx)
	shape := narrow.withRows(fleetRows)
	load := shape.payload(0, rand.New(rand.NewPCG(1, 2)))
	end := time.Now().Add(length)
	for i, c := range collectors {
		g.Go(func() error {
			next := time.Now().Add(pause * time.Duration(i) / time.Duration(len(collectors)))
			for next.Before(end) {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Until(next)):
				}
				body, err := pushBody(nil, c.ID, shape, load, time.Now())
				if err != nil {
					return err
				}
				switch err := c.Push(ctx, body, shape.rows); {
				case errors.Is(err, fleet.ErrBusy): // a collector would keep it; here it is made anew
					s.busy.Add(1)
					next = time.Now().Add(busyPause)
				case err != nil:
					return err
				default:
					s.pushed.Add(1)
					next = later(next.Add(pause), time.Now())
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// settled checks that every batch that was answered 202 is stored. One that was
// answered 503 may be too.
func (s *services) settled(ctx context.Context) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st, err := s.backlog.bus.Status(ctx)
		if err != nil {
			return err
		}
		if st.AckFloor == st.LastSequence {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("batch %d of %d after two minutes", st.AckFloor, st.LastSequence)
		}
	}
	stored, err := s.db.number(ctx, "select count(*) from ingest.batch")
	if err == nil && int64(stored) < s.pushed.Load() {
		err = fmt.Errorf("%d batches are stored of %d accepted", stored, s.pushed.Load())
	}
	return err
}
