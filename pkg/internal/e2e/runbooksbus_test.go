package e2e

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
)

// parts is a stream and a database of services that run apart. None does yet.
type parts struct {
	*system
	url string // of NATS
	bus *bus.Bus
}

func newParts(t *testing.T, url string, cfg bus.Config) *parts {
	t.Helper()
	p := &parts{system: newSystem(t, testdb.New(t)), url: url}
	cfg.URL, cfg.DeadLettersMaxBytes = url, 16<<20
	var err error
	p.bus, err = bus.Connect(t.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.bus.Close(context.Background()) })
	require.NoError(t, p.bus.EnsureStreams(t.Context()))
	return p
}

func (p *parts) page(b *book, title string) *page {
	s := p.system.page(b, title)
	s.env = append(s.env, "PGANALYTICS_NATS_URL="+p.url)
	return s
}

// publish sends a batch without rows of some size.
func (p *parts) publish(size int) error {
	_, err := p.bus.Publisher().Publish(p.t.Context(), emptyBatch(size))
	return err
}

func emptyBatch(size int) *batch.Batch {
	id := uuid.Must(uuid.NewV7())
	at := time.Unix(id.Time().UnixTime()).UTC().Truncate(time.Millisecond)
	b := &batch.Batch{
		CollectorID: uuid.New(), ID: id, SentAt: at, ReceivedAt: at,
		Labels: []batch.Label{{Name: "x", Value: strings.Repeat("x", size)}},
	}
	b.Seal()
	return b
}

func natsServerLost(t *testing.T, b *book) {
	cluster := testnats.StartCluster(t)
	s := newParts(t, cluster.URL(), bus.Config{Replicas: 3})
	require.NoError(t, s.publish(10))
	p := s.page(b, "One of three NATS servers is lost")
	whole := regexp.MustCompile(`(?m)^replicas +3$`)
	says := func(what string, ok func(out string) bool) {
		waits(t, what, func() bool {
			out, status := p.run(0)
			return status == 0 && ok(out)
		})
	}
	says("all are well", whole.MatchString)

	lost := cluster.Others(cluster.Leader("BATCHES"))[0]
	cluster.Kill(lost)
	says("the lost one is named", regexp.MustCompile(`(?m)^replicas +3, not up to date: `+lost+`$`).MatchString)
	out, status := s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "not every NATS server has all of the stream: "+lost)
	waits(t, "two are enough", func() bool { return s.publish(10) == nil })

	cluster.Start(lost)
	says("it is over", whole.MatchString)
}

func streamFull(t *testing.T, b *book) {
	s := newParts(t, testnats.Start(t).URL(), bus.Config{BatchesMaxBytes: 1 << 20})
	for s.publish(50_000) == nil { // it ends: nobody takes anything away
	}
	p := s.page(b, "The stream is full")
	out, status := p.run(0)
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^bytes +\S+ \S+ of 1\.0 MiB \(9\d\.\d%\)$`, out)
	out, status = s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "FIRST: the stream is 9")
	require.Contains(t, out, "docs/operations.md: "+p.title)

	out, status = p.run(1)
	require.Zero(t, status, out)
	require.NoError(t, s.publish(50_000), "it takes more at once")
	out, _ = p.run(0)
	require.Contains(t, out, "of 20.0 GiB")
}

func noIngester(t *testing.T, b *book) {
	s := newParts(t, testnats.Start(t).URL(), bus.Config{})
	for range 3 {
		require.NoError(t, s.publish(10))
	}
	p := s.page(b, "The ingesters are behind")
	out, status := p.run(0)
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^lag +3 batches, `, out)
	require.Regexp(t, `(?m)^ingesters +0 seen`, out)
	out, status = s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "docs/operations.md: "+p.title)

	s.serve = s.run("ingester", "--nats-url", s.url, "--admin-listen", "127.0.0.1:0")
	waits(t, "it gets on", func() bool {
		out, _ := p.run(0)
		return regexp.MustCompile(`(?m)^lag +0 batches, 0s$`).MatchString(out) && regexp.MustCompile(`(?m)^ingesters +1 seen`).MatchString(out)
	})
	waits(t, "nothing is wrong", func() bool {
		_, status := s.page(b, "").run(0)
		return status == 0
	})
}
