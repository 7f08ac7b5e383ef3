package authsvc_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

// member is a real collector's uplink with its spool.
type member struct {
	*stack
	id     *uplink.Identity
	client *uplink.Client
	spool  *spool.Spool
}

func (s *stack) member(name string) *member {
	s.t.Helper()
	m := &member{stack: s}
	dir := filepath.Join(s.t.TempDir(), name)
	var err error
	m.id, err = uplink.Enroll(s.t.Context(), uplink.Enrollment{
		URL: s.users.URL(), CAFingerprint: ca.Fingerprint(s.authority.ServerCAs()[0]),
		Token: s.enrolmentToken(authsvc.EnrollmentRequest{BoundName: name}), Name: name, Hostname: name, Version: "t", StateDir: dir,
	})
	require.NoError(s.t, err)
	m.client = uplink.NewClient(m.id, dir, prometheus.NewRegistry())
	s.t.Cleanup(m.client.Close)
	m.spool, err = spool.Open(spool.Config{Dir: filepath.Join(dir, "spool")}, s.log(), prometheus.NewRegistry())
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = m.spool.Close() })
	pusher := uplink.NewPusher(uplink.PusherConfig{MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, Grace: time.Millisecond},
		m.client, m.spool, s.log())
	s.background(pusher.Run)
	return m
}

func (m *member) collect() {
	m.t.Helper()
	encoder, err := zstd.NewWriter(nil)
	require.NoError(m.t, err)
	_, err = m.spool.Append(func(stamp spool.Stamp) ([]byte, error) {
		server := batch.ServerID(m.id.CollectorID, "db")
		p := native.Push{
			CollectorID: m.id.CollectorID, Hostname: "h", Version: "t",
			BatchID: stamp.BatchID, Epoch: stamp.Epoch, Sequence: stamp.Sequence, Previous: stamp.Previous,
			Sections: []batch.Section{{
				Family: "pg_settings", Server: "db", ServerID: server, Rows: 1,
				Columns: []batch.Column{{Name: "name", Type: catalogue.Text}},
				Tuples:  batch.AppendText(batch.AppendTuple(nil, batch.LeadFields+1, time.Now(), server), "work_mem"),
			}},
		}
		return encoder.EncodeAll(p.Append(nil), nil), nil
	})
	require.NoError(m.t, err)
}

// keepCertificate runs as it does in a collector.
func (m *member) keepCertificate() {
	m.background(func(ctx context.Context) error {
		_ = m.client.KeepCertificate(ctx, m.log()) // ctx ended
		return nil
	})
}

func TestFleetResumesByItselfAfterAnOutagePastEveryLife(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	require.NoError(t, store.Migrate(t.Context(), cluster.URL()))
	// Collectors and handshakes go by the machine's clock, so the outage lies before now.
	const outage = 20 * 24 * time.Hour
	s := newGround(t, cluster.URL(), -outage)
	stopAuthsvc := s.open(authsvc.Config{CollectorURL: collectorURL})
	g := s.gateway() // its address must be known before collectors enrol
	stopAuthsvc()
	stopAuthsvc = s.open(authsvc.Config{CollectorURL: g.url})
	fleet := make([]*member, 5)
	for i := range fleet {
		fleet[i] = s.member(fmt.Sprintf("db%d", i))
		fleet[i].collect()
	}
	unsent := func() (n int64) {
		for _, m := range fleet {
			n += int64(m.spool.Stats().Unsent)
		}
		return n
	}
	onStream := func() uint64 {
		status, err := s.bus.Status(context.Background())
		require.NoError(t, err)
		return status.Messages
	}
	s.eventually(func() bool { return unsent() == 0 }, "all is well")
	require.EqualValues(t, 5, onStream())

	stopAuthsvc()
	cluster.Stop()
	s.clock.advance(outage)
	s.eventually(func() bool { return g.verifier.Ready() == nil }, "the gateway follows NATS alone")
	for _, m := range fleet {
		for range 3 {
			m.collect()
		}
	}
	cert := s.client(fleet[0].id.Certificate)
	token, _, err := s.service.Signer.CollectorToken(fleet[0].id.CollectorID, "h", fleet[0].id.Certificate.Leaf)
	require.NoError(t, err)
	a, _, err := s.push(cert, g, fleet[0].id.CollectorID, token)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, a.status)
	require.Equal(t, "certificate_expired", a.Code)
	require.EqualValues(t, 15, unsent(), "the spools hold")
	require.EqualValues(t, 5, onStream())

	cluster.Start()
	s.eventually(func() bool { return s.store.Ping(context.Background()) == nil }, "the database is back")
	s.open(authsvc.Config{CollectorURL: g.url})
	for _, m := range fleet {
		m.keepCertificate()
	}
	s.eventually(func() bool { return unsent() == 0 }, "nobody did anything, and everything is sent")
	require.EqualValues(t, 20, onStream())
	require.Equal(t, 5, query[int](s, `select count(*) from identity.collector where status = 'registered' and generation = 2`))
	require.Zero(t, query[int](s, `select count(*) from identity.audit where action in ('collector.lock', 'collector.reenroll')`))
}
