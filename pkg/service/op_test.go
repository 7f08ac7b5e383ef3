package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/health"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/replay/archive"
	"pganalytics/pkg/service"
)

// installation is how a command reaches the line.
func (l *line) installation() *service.Installation {
	l.t.Helper()
	dir := l.t.TempDir()
	in := &service.Installation{DataDir: dir, Timeout: 10 * time.Second}
	in.NATS.URL = l.natsURL
	in.Database.URLFile = filepath.Join(dir, "url")
	require.NoError(l.t, os.WriteFile(in.Database.URLFile, []byte(l.url), 0o600))
	in.Database.MaxConns = 8
	return in
}

func (l *line) look(in *service.Installation) health.Facts {
	l.t.Helper()
	f, err := service.Look(l.t.Context(), in, io.Discard)
	require.NoError(l.t, err)
	return f
}

func (l *line) enrolled(status string, storedAgo string, ends time.Duration) {
	l.t.Helper()
	id := uuid.New()
	l.number(`with k as (
insert into identity.collector (id, name, hostname, address, version, status, generation, created_at, updated_at)
values ($1, $2, '', '', '', $3, 1, now(), now()) returning id)
insert into identity.certificate (thumbprint, collector_id, generation, serial, key_hash, der, not_before, not_after)
select 'sha256:' || encode(sha256(id::text::bytea), 'hex'), id, 1, $2, decode(repeat('00', 32), 'hex'), '', now(), now() + $4::interval from k returning 1`,
		id, "k"+id.String(), status, ends)
	if storedAgo == "" {
		return
	}
	l.number(`insert into metrics.server (server_id, collector_id, name, first_seen, last_seen) values ($1, $1, 's', now(), now()) returning 1`, id)
	l.number(`insert into ingest.batch (sent_at, collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections, stored_at)
values (now(), $1, $1, 1, '', '', 0, '[]', now() - $2::interval) returning 1`, id, storedAgo)
}

func TestALookTellsWhatStreamAndDatabaseHold(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: 7 * time.Second}}) // which no command knows of
	in := l.installation()

	f := l.look(in)
	require.Nil(t, f.Serve)
	require.Zero(t, f.Stream.Batches)
	require.Nil(t, f.Stream.FullIn)
	require.Empty(t, f.Stream.Faults)
	require.Zero(t, f.Database.Ingesters)
	require.Nil(t, f.Database.LastLoad)
	require.Equal(t, "no ingester wrote to the database within the last minute", health.Advise(f)[0].Wrong)

	stop := l.ingest(settings(), nil)
	for range 5 {
		l.publish(newBatch(10))
	}
	l.settled()
	stop()
	require.NoError(t, l.store.Probe(t.Context()))
	l.publish(newBatch(10), newBatch(10)) // nobody takes them
	held, err := l.bus.Holds().Take(t.Context(), bus.Hold{Name: "mine", Incarnation: l.status().Incarnation, From: 4, To: 4, Reason: "a test", By: "me"})
	require.NoError(t, err)

	f = l.look(in)
	require.EqualValues(t, 7, f.Stream.Batches)
	require.EqualValues(t, 7, f.Stream.LastSequence)
	require.EqualValues(t, 2, f.Stream.Backlog)
	require.Positive(t, f.Stream.Lag)
	require.Positive(t, f.Stream.Window)
	require.Positive(t, f.Stream.Inflow)
	require.NotNil(t, f.Stream.FullIn)
	require.InEpsilon(t, float64(f.Stream.Bytes)*4/7, float64(f.Stream.Kept), 0.1, "4 to 7: held, or not stored")
	require.Len(t, f.Stream.Holds, 1)
	require.Equal(t, held.Name, f.Stream.Holds[0].Name)
	require.Equal(t, 1, f.Database.Ingesters)
	require.NotNil(t, f.Database.LastLoad)
	require.GreaterOrEqual(t, f.Database.Version, 170000)
	require.Positive(t, f.Database.SizeBytes)
	require.Empty(t, health.Advise(f))

	l.number("with old as (update ingest.progress set at = at - interval '61 seconds' returning 1) select count(*) from old")
	require.Zero(t, l.look(in).Database.Ingesters, "seen, but not lately")
}

func TestALookCountsTheCollectors(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	l.enrolled("registered", "", 7*24*time.Hour)
	l.enrolled("registered", "1 minute", 7*24*time.Hour)
	l.enrolled("registered", "1 minute", 23*time.Hour)
	l.enrolled("registered", "4 minutes", 7*24*time.Hour)
	l.enrolled("registered", "4 minutes", -time.Hour)
	l.enrolled("locked", "1 minute", time.Hour)
	l.enrolled("disabled", "", time.Hour)
	f := l.look(l.installation())
	require.Equal(t, &health.Collectors{Registered: 1, Active: 2, Offline: 2, Disabled: 1, Locked: 1, Expiring: 2}, f.Collectors)
}

func TestALookTellsWhoDoesNotAnswerAndShowsTheRest(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	l := newLine(t, lineConfig{databaseURL: cluster.URL()})
	in := l.installation()
	in.Timeout = 3 * time.Second

	cluster.Stop()
	f := l.look(in)
	require.NotNil(t, f.Stream)
	require.Nil(t, f.Database)
	require.Equal(t, "The database is away", health.Advise(f)[0].See)
	require.Nil(t, service.CountIngesters(t.Context(), in))

	l.nats.Stop()
	_, err := service.Look(t.Context(), in, io.Discard)
	require.ErrorContains(t, err, "neither NATS nor the database answers")
	require.NotContains(t, err.Error(), "\n")
	_, err = service.LookAtStream(t.Context(), in, io.Discard)
	require.ErrorContains(t, err, "connect to nats")
	require.NotContains(t, err.Error(), "\n")

	cluster.Start()
	f = l.look(in)
	require.Nil(t, f.Stream)
	require.NotNil(t, f.Database)
	require.Equal(t, "NATS is away", health.Advise(f)[0].See)
}

func TestALookAsksTheServeOfThisHost(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	in := l.installation()
	status := http.StatusOK
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "not ready:\n nats\n")
	}))
	defer admin.Close()
	data, err := json.Marshal(service.Endpoints{Admin: admin.URL})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(in.DataDir, "endpoints.json"), data, 0o600))
	require.Equal(t, &health.Serve{Ready: true}, l.look(in).Serve)
	status = http.StatusServiceUnavailable
	require.Equal(t, &health.Serve{Detail: "not ready: nats"}, l.look(in).Serve)
	admin.Close()
	require.Equal(t, &health.Serve{Detail: "it does not answer"}, l.look(in).Serve)
}

// exported reads an archive whole.
func exported(t *testing.T, dir string) []batch.Delivery {
	t.Helper()
	r, err := archive.NewReader(dir, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	var all []batch.Delivery
	for {
		some, err := r.Next(t.Context(), 3, 1<<20)
		require.NoError(t, err)
		if len(some) == 0 {
			return all
		}
		all = append(all, some...)
	}
}

func TestAnExportHasWhatCameInBetweenTheTimes(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	in := l.installation()
	var all []*batch.Batch
	for range 9 {
		all = append(all, newBatch(5))
	}
	l.publish(all...)
	r, err := l.bus.Reader(t.Context(), 1, 9)
	require.NoError(t, err)
	messages, err := r.Next(t.Context(), 9, 1<<20)
	require.NoError(t, err)
	require.Len(t, messages, 9)

	dir := filepath.Join(t.TempDir(), "new")
	e := service.Export{From: messages[2].StoredAt, To: messages[7].StoredAt, Dir: dir, SegmentBytes: 1}
	done, err := e.Run(t.Context(), in, io.Discard)
	require.NoError(t, err)
	require.EqualValues(t, 3, done.First)
	require.EqualValues(t, 7, done.Last)
	require.Equal(t, 5, done.Segments)
	require.False(t, done.Late)
	require.Zero(t, done.Missing)
	got := exported(t, dir)
	require.Len(t, got, 5)
	for i, d := range got {
		require.Equal(t, messages[2+i].Payload, d.Payload)
		require.Equal(t, messages[2+i].Position, d.Position)
		require.Equal(t, messages[2+i].Subject, d.Subject)
	}
	again, err := e.Run(t.Context(), in, io.Discard)
	require.NoError(t, err, "once more")
	require.Equal(t, done, again)
	holds, err := l.bus.Holds().List(t.Context())
	require.NoError(t, err)
	require.Empty(t, holds)
}

func TestAnInterruptedExportReleasesItsHoldAndGoesOn(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	in := l.installation()
	for range 200 {
		l.publish(newBatch(5))
	}
	dir := t.TempDir()
	e := service.Export{Dir: dir, SegmentBytes: 1}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if x, err := archive.ReadIndex(dir); err == nil && len(x.Segments) > 0 {
				cancel()
			}
		}
	}()
	_, err := e.Run(ctx, in, io.Discard)
	require.ErrorIs(t, err, context.Canceled)
	x, err := archive.ReadIndex(dir)
	require.NoError(t, err)
	require.False(t, x.Complete)
	written := len(x.Segments)
	require.Positive(t, written)
	holds, err := l.bus.Holds().List(t.Context())
	require.NoError(t, err)
	require.Empty(t, holds)

	l.publish(newBatch(5)) // not asked for by the first run
	done, err := e.Run(t.Context(), in, io.Discard)
	require.NoError(t, err)
	require.EqualValues(t, 200, done.Messages)
	require.Len(t, exported(t, dir), 200)
	holds, err = l.bus.Holds().List(t.Context())
	require.NoError(t, err)
	require.Empty(t, holds)
}

// after is a line whose batches were exported and are lost: from the stream and
// from the database.
func after(t *testing.T, batches int) (l *line, in *service.Installation, dir string) {
	t.Helper()
	l = newLine(t, lineConfig{})
	in = l.installation()
	catalogueDir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(catalogueDir, "probe.yaml"), []byte(family), 0o600))
	in.CatalogueDir = []string{catalogueDir}
	for range batches {
		l.publish(newBatch(5))
	}
	dir = t.TempDir()
	_, err := service.Export{Dir: dir, SegmentBytes: 1}.Run(t.Context(), in, io.Discard)
	require.NoError(t, err)
	l.nats.Stop()
	other := testnats.Start(t) // a new stream, with other sequences
	in.NATS.URL = other.URL()
	require.NoError(t, service.MakeStreams(t.Context(), in.NATS, io.Discard))
	return l, in, dir
}

func TestAnExportIsReplayedOnceAfterItLeftTheStream(t *testing.T) {
	t.Parallel()
	l, in, dir := after(t, 12)
	req := service.ReplayRequest{File: dir, By: "cli:test", DryRun: true}
	plan, _, err := in.Replay(t.Context(), req, service.ReplayConsole{Stderr: io.Discard})
	require.NoError(t, err)
	require.EqualValues(t, 12, plan.Missing.Batches)
	require.Zero(t, l.rows())

	req.DryRun = false
	for _, stored := range []uint64{12, 0} {
		_, res, err := in.Replay(t.Context(), req, service.ReplayConsole{Stderr: io.Discard})
		require.NoError(t, err)
		require.Equal(t, stored, res.Done.Stored.Batches)
		require.Zero(t, res.Left)
		require.Equal(t, 12*5, l.rows())
		require.Equal(t, 12, l.batches())
	}
	require.Equal(t, 1, l.number("select count(*) from identity.audit where action = 'stream.replay' and actor = 'cli:test' and changes->'done'->'stored'->>'batches' = '12'"))
}

func TestADamagedExportIsReplayedInPartOnlyIfThatIsWanted(t *testing.T) {
	t.Parallel()
	l, in, dir := after(t, 6)
	files, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	require.NoError(t, err)
	data, err := os.ReadFile(files[3])
	require.NoError(t, err)
	data[len(data)-1] ^= 1
	require.NoError(t, os.WriteFile(files[3], data, 0o600))

	req := service.ReplayRequest{File: dir}
	_, _, err = in.Replay(t.Context(), req, service.ReplayConsole{Stderr: io.Discard})
	require.ErrorContains(t, err, "message 4 in "+filepath.Base(files[3]))
	require.Zero(t, l.rows(), "nothing half done")

	req.AllowPartial = true
	var told bytes.Buffer
	_, res, err := in.Replay(t.Context(), req, service.ReplayConsole{Stderr: &told})
	require.NoError(t, err)
	require.EqualValues(t, 5, res.Done.Stored.Batches)
	require.Equal(t, 1, strings.Count(told.String(), "left out: message 4"), told.String())
	require.Equal(t, 5*5, l.rows())
}

func TestAnExportBelowTheLedgersFloorIsRefused(t *testing.T) {
	t.Parallel()
	l, in, dir := after(t, 2)
	x, err := archive.ReadIndex(dir)
	require.NoError(t, err)
	l.number("update ingest.floor set sent_at = $1::timestamptz + interval '1 microsecond' returning 1", x.OldestSent)
	_, _, err = in.Replay(t.Context(), service.ReplayRequest{File: dir}, service.ReplayConsole{Stderr: io.Discard})
	require.Equal(t, fault.Conflict, fault.ClassOf(err))
	require.ErrorContains(t, err, "might be stored twice")
	require.Zero(t, l.rows())
	_, _, err = in.Replay(t.Context(), service.ReplayRequest{File: t.TempDir()}, service.ReplayConsole{Stderr: io.Discard})
	require.ErrorContains(t, err, "is no export")
}
