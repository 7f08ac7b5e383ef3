package chaos

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestACommitThatIsLostOnItsWayThereOrBackIsStoredOnce(t *testing.T) {
	t.Parallel()
	const lost = 10
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	wire, db := newProxy(t, s.db)
	in := s.ingest(ingesterConfig{db: db})
	s.flowing(20)
	wire.loseCommits(lost, lost)
	s.eventually("COMMITs and answers are lost", func() bool { return wire.commitsLost() == 2*lost })
	f.stop()
	s.verify()
	require.Contains(t, in.log.String(), "commit:")
}

func TestAWireToTheStreamThatIsCutForLongerThanAckWaitLosesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	wire, nats := newProxy(t, s.natsURL)
	s.ingest(ingesterConfig{natsURL: nats})
	for _, cut := range []func(){wire.disconnect, wire.hush} {
		s.flowing(50)
		cut()
		other := s.ingest(ingesterConfig{}) // takes over what the first one has
		last(outage)
		s.flowing(50)
		wire.heal()
		other.stop()
	}
	s.flowing(50)
	f.stop()
	s.verify()
}

func TestANATSServerKilledUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	nats := startNATS(t)
	s := newSite(t, siteConfig{natsURL: nats.url})
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	s.ingest(ingesterConfig{})
	for range 5 {
		s.flowing(100)
		nats.kill()
		last(ackWait / 2)
		nats.start()
	}
	s.flowing(100)
	f.stop()
	s.verify()
	require.Positive(t, f.refused.Load(), "no collector noticed")
}
