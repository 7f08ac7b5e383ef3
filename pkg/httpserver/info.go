package httpserver

import (
	"context"
	"net/http"
	"sync"
	"time"

	"pganalytics/pkg/daemon"
)

// HealthChecks are the neighbours of a service. One that is nil the service
// does not have, and its field is left out.
type HealthChecks struct {
	Database  func(ctx context.Context) error
	Timescale func(ctx context.Context) error
	NATS      func(ctx context.Context) error
}

type healthAnswer struct {
	Status        string    `json:"status"` // ok, or degraded when a neighbour is away
	Version       string    `json:"version"`
	Timestamp     time.Time `json:"timestamp"`
	UptimeSeconds int64     `json:"uptime_seconds"`
	DatabaseOK    *bool     `json:"database_ok,omitempty"`
	TimescaleOK   *bool     `json:"timescale_ok,omitempty"`
	NATSOK        *bool     `json:"nats_ok,omitempty"`
}

// Health answers with the state of the service and its neighbours, always with
// 200: it informs people, /readyz on the admin listener decides about traffic.
// The route is open to everyone, so the neighbours are asked at most every
// two seconds, however many ask here.
func Health(build daemon.Build, started time.Time, checks HealthChecks) http.HandlerFunc {
	const maxAge, timeout = 2 * time.Second, 2 * time.Second
	var (
		mu    sync.Mutex
		last  healthAnswer
		asked time.Time
	)
	return Handle(func(w http.ResponseWriter, r *http.Request) error {
		recordOf(r.Context()).quiet = true
		mu.Lock()
		if time.Since(asked) > maxAge {
			// Not the request's context: what one client gave up on would be
			// told to the others as a failure.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
			last = checks.ask(ctx)
			cancel()
			asked = time.Now()
		}
		answer := last
		mu.Unlock()
		answer.Version = build.Version
		answer.Timestamp = time.Now().UTC()
		answer.UptimeSeconds = int64(time.Since(started).Seconds())
		return WriteJSON(w, http.StatusOK, answer)
	})
}

// ask runs the checks at the same time.
func (c HealthChecks) ask(ctx context.Context) healthAnswer {
	var wg sync.WaitGroup
	run := func(check func(context.Context) error) *bool {
		if check == nil {
			return nil
		}
		ok := new(bool)
		wg.Go(func() { *ok = check(ctx) == nil })
		return ok
	}
	a := healthAnswer{Status: "ok", DatabaseOK: run(c.Database), TimescaleOK: run(c.Timescale), NATSOK: run(c.NATS)}
	wg.Wait()
	for _, ok := range []*bool{a.DatabaseOK, a.TimescaleOK, a.NATSOK} {
		if ok != nil && !*ok {
			a.Status = "degraded"
		}
	}
	return a
}

// Version answers with the build and the version of the HTTP interface.
func Version(build daemon.Build) http.HandlerFunc {
	return Handle(func(w http.ResponseWriter, r *http.Request) error {
		recordOf(r.Context()).quiet = true
		return WriteJSON(w, http.StatusOK, struct {
			Version string `json:"version"`
			Commit  string `json:"commit"`
			Date    string `json:"date"`
			API     string `json:"api"`
		}{build.Version, build.Commit, build.Date, "v1"})
	})
}
