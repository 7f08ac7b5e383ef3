package chaos

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// copying counts backends in mid-COPY that wait for more from their client.
const copying = `select count(*) from pg_stat_activity where datname = current_database()
and state = 'active' and wait_event = 'ClientRead' and query ilike 'copy %'`

// standsInCopy waits until an ingester's COPY stands, with rows in both days
// of one family and none yet of the other.
func (s *site) standsInCopy(reached <-chan struct{}) {
	s.t.Helper()
	s.eventually("a COPY stands", func() bool {
		select {
		case <-reached:
			return s.number(copying) > 0
		default:
			return false
		}
	})
}

func TestAnIngesterKilledInMidCopyLeavesNoHalfBatch(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	wire, db := newProxy(t, s.db)
	for range 3 {
		enough := f.taken.Load() + 200
		s.eventually("a load's worth of batches", func() bool { return f.taken.Load() > enough })
		reached := wire.holdCopy(16 << 10)
		in := s.ingest(ingesterConfig{db: db})
		s.standsInCopy(reached)
		in.kill()
		wire.releaseCopy()
	}
	s.ingest(ingesterConfig{})
	f.stop()
	s.verify()
	require.GreaterOrEqual(t, s.number("select count(*) from timescaledb_information.chunks where hypertable_name = 'chaos_left'"), 2,
		"no batch crossed the boundary of a chunk")
}

func TestAnIngesterFrozenInMidCopyHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	wire, db := newProxy(t, s.db)
	s.eventually("a load's worth of batches", func() bool { return f.taken.Load() > 200 })
	reached := wire.holdCopy(16 << 10)
	frozen := s.ingest(ingesterConfig{db: db})
	s.standsInCopy(reached)
	frozen.signal(syscall.SIGSTOP)
	s.ingest(ingesterConfig{})
	s.flowing(200) // others go on
	f.stop()
	s.settled() // also what the frozen one had, before it is resumed
	wire.releaseCopy()
	frozen.signal(syscall.SIGCONT)
	f = s.collect(fleetConfig{}) // for both
	s.flowing(100)
	f.stop()
	s.verify()
}

func TestIngestersKilledEverySecondLoseNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	pair := [2]*process{s.ingest(ingesterConfig{}), s.ingest(ingesterConfig{})}
	interrupted := 0
	for kill := range 20 {
		<-time.After(500*time.Millisecond + rand.N(time.Second)) // anywhere in a load
		pair[kill%2].kill()
		if s.outstanding() > 0 {
			interrupted++
		}
		pair[kill%2] = s.startIngester(ingesterConfig{})
	}
	pair[0].ready()
	pair[1].ready()
	f.stop()
	s.verify()
	require.Greater(t, interrupted, 5, "too few kills hit a running load to mean anything")
}

func TestIngestersComeAndGoAndShareTheWork(t *testing.T) {
	t.Parallel()
	slow(t)
	const stored = "pganalytics_ingester_rows_stored_total"
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	for range 3 { // they come and go
		first := s.ingest(ingesterConfig{})
		s.flowing(50)
		s.ingest(ingesterConfig{})
		s.ingest(ingesterConfig{})
		s.flowing(50)
		first.stop()
		s.flowing(50)
		s.stopIngesters()
	}
	var four [4]*process
	for i := range four {
		four[i] = s.ingest(ingesterConfig{})
	}
	s.flowing(500) // what had gathered is gone
	var before [4]float64
	for i, in := range four {
		before[i] = in.value(stored)
	}
	s.flowing(2000)
	least, most := 0.0, 0.0
	for i, in := range four {
		share := in.value(stored) - before[i]
		t.Logf("ingester %d stored %.0f rows", i, share)
		if i == 0 || share < least {
			least = share
		}
		most = max(most, share)
	}
	require.LessOrEqual(t, most, 2*least, "the work is not shared evenly")
	f.stop()
	s.verify()
}
