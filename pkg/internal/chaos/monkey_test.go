package chaos

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// seed names the variable that repeats the order of faults of another run.
const seed = "CHAOS_SEED"

// Whatever was proved of each fault alone must hold of many at once.
func TestFaultsInAnyOrderLoseNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv(seed); text != "" {
		var err error
		n, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("%s=%d", seed, n)
	random := rand.New(rand.NewPCG(n, 0))

	nats := startNATS(t)
	s := newSite(t, siteConfig{natsURL: nats.url})
	f := s.collect(fleetConfig{change: func(collector int, r *row) {
		r.shortN = collector == 0 && r.n == 7 && r.batch[15]%16 == 0
	}})
	dbWire, db := newProxy(t, s.db)
	natsWire, natsURL := newProxy(t, s.natsURL)
	wired := ingesterConfig{db: db, natsURL: natsURL}
	pair := [2]*process{s.ingest(wired), s.ingest(ingesterConfig{})}
	conn := s.connect()
	pause := func() { last(time.Duration(random.Int64N(int64(3 * ackWait / 2)))) }

	faults := []struct {
		name string
		do   func()
	}{
		{"an ingester is killed", func() { pair[0].kill(); pair[0] = s.startIngester(wired) }},
		{"the other ingester is killed", func() { pair[1].kill(); pair[1] = s.startIngester(ingesterConfig{}) }},
		{"sessions are ended", func() { sql(t, conn, "select pg_terminate_backend(pid) "+sessions) }},
		{"commits are lost", func() { dbWire.loseCommits(2, 2) }},
		{"the database is silent", func() { dbWire.hush(); pause(); dbWire.heal() }},
		{"the database is cut off", func() { dbWire.disconnect(); pause(); dbWire.heal() }},
		{"the stream is silent", func() { natsWire.hush(); pause(); natsWire.heal() }},
		{"the stream is cut off", func() { natsWire.disconnect(); pause(); natsWire.heal() }},
		{"the stream's server is killed", func() { nats.kill(); pause(); nats.start() }},
		{"a table is locked", func() {
			sql(t, conn, "begin", "lock table metrics.chaos_left in access exclusive mode")
			pause()
			sql(t, conn, "commit")
		}},
	}
	for end := time.Now().Add(45 * time.Second); time.Now().Before(end); pause() {
		fault := faults[random.IntN(len(faults))]
		t.Log(fault.name)
		fault.do()
	}
	pair[0].ready()
	pair[1].ready()
	s.flowing(100)
	f.stop()
	s.verify()
}
