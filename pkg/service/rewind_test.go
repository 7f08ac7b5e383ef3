package service_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testdb"
)

// past is a line whose database can be put back to what it was.
type past struct {
	*line
	cluster   *testdb.Cluster
	dir       string
	ingesters int
}

func newPast(t *testing.T) *past {
	t.Helper()
	cluster := testdb.StartCluster(t)
	p := &past{cluster: cluster, dir: t.TempDir()}
	p.line = newLine(t, lineConfig{databaseURL: cluster.URL(), bus: bus.Config{AckWait: time.Second}})
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "probe.yaml"), []byte(family), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(p.dir, "run"), 0o700))
	return p
}

// start starts an ingester and waits until it is ready.
func (p *past) start(env ...string) (*exec.Cmd, *bytes.Buffer) {
	p.t.Helper()
	p.ingesters++
	ready := filepath.Join(p.dir, "run", fmt.Sprint(p.ingesters))
	cmd, log := p.startIngester(p.dir, ready, append([]string{"PGANALYTICS_TRIM_INTERVAL=200ms"}, env...)...)
	p.eventually("the ingester is ready", func() bool { _, err := os.Stat(ready); return err == nil })
	return cmd, log
}

// push publishes n batches of ten rows and waits until they are stored.
func (p *past) push(n int) {
	p.t.Helper()
	for range n {
		p.publish(newBatch(10))
	}
	p.settled()
}

// backup copies the database as it is now, and lets it run on.
func (p *past) backup() testdb.Copy {
	p.t.Helper()
	p.cluster.Stop()
	backup := p.cluster.Copy()
	p.cluster.Start()
	return backup
}

// rewind puts the database back.
func (p *past) rewind(to testdb.Copy) {
	p.t.Helper()
	p.cluster.Kill()
	p.cluster.Restore(to)
	p.cluster.Start()
}

func (p *past) holds() []bus.Hold {
	p.t.Helper()
	holds, err := p.bus.Holds().List(context.Background())
	require.NoError(p.t, err)
	return holds
}

// allStored waits until the ledger has that many batches, and compares it with
// the tables.
func (p *past) allStored(batches int) {
	p.t.Helper()
	p.eventually("everything is stored again", func() bool { return p.counted("select count(*) from ingest.batch") == batches })
	p.eventually("nothing is held", func() bool { return len(p.holds()) == 0 })
	p.settled()
	require.Equal(p.t, 10*batches, p.rows())
	require.Equal(p.t, batches, p.batches())
	require.Empty(p.t, p.letters())
}

// counted is number for a server that may be away; -1 then.
func (p *past) counted(query string) int {
	conn, err := pgx.Connect(context.Background(), p.url)
	if err != nil {
		return -1
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var n int
	if conn.QueryRow(context.Background(), query).Scan(&n) != nil {
		return -1
	}
	return n
}

func TestWhatARestoredDatabaseLacksIsStoredAgainWithoutAnybody(t *testing.T) {
	t.Parallel()
	p := newPast(t)
	p.start()
	p.start()
	p.push(50)
	backup := p.backup()
	p.push(50)
	p.rewind(backup)
	p.push(20)
	p.allStored(120)
}

func TestADatabaseRestoredWhileNobodyLookedIsNoticedAtTheStart(t *testing.T) {
	t.Parallel()
	p := newPast(t)
	first, _ := p.start()
	p.push(50)
	backup := p.backup()
	p.push(50)
	p.publish(poison(newBatch(10))) // the newest acknowledged one is not in the ledger
	p.settled()
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()
	p.rewind(backup)
	for range 20 {
		p.publish(newBatch(10))
	}
	p.start()
	p.eventually("everything is stored again", func() bool { return p.counted("select count(*) from ingest.batch") == 120 })
	p.eventually("nothing is held", func() bool { return len(p.holds()) == 0 })
	p.settled()
	require.Equal(t, 1200, p.rows())
	require.Len(t, p.letters(), 1)
}

func TestALargeGapWaitsOnTheStreamForPeople(t *testing.T) {
	t.Parallel()
	p := newPast(t)
	// No window: whatever is stored may go at once, but for what is held.
	old := []string{"PGANALYTICS_AUTO_REWIND=1ms", "PGANALYTICS_REPLAY_WINDOW=1ms"}
	first, _ := p.start(old[0], "PGANALYTICS_REPLAY_WINDOW=1h")
	p.push(50)
	p.eventually("the database vouches for them", func() bool { return p.counted("select max(ack_floor) from ingest.progress") == 50 })
	backup := p.backup()
	p.push(50)
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()
	p.rewind(backup)
	ingester, log := p.start(old...)
	p.push(20)
	p.eventually("the trimmer has taken what is not held", func() bool { return p.status().FirstSequence > 1 })
	require.Equal(t, 70, p.batches(), "new batches go on")
	holds := p.holds()
	require.Len(t, holds, 1)
	require.LessOrEqual(t, holds[0].From, uint64(51))
	require.LessOrEqual(t, p.status().FirstSequence, holds[0].From)

	require.NoError(t, ingester.Process.Kill())
	_ = ingester.Wait()
	require.Contains(t, log.String(), "replay needed")
	p.start("PGANALYTICS_AUTO_REWIND=1h", old[1])
	p.allStored(120)
	p.eventually("the stream is trimmed again", func() bool { return p.status().Messages == 0 })
}

// As many batches are missing as wait, so nobody can tell that one was lost.
func TestABatchThatWasLostAmongThoseThatWaitIsStoredAgain(t *testing.T) {
	t.Parallel()
	p := newPast(t)
	first, _ := p.start()
	strange := newBatch(10)
	strange.Sections[0].Family = "from_tomorrow"
	strange.Seal()
	p.publish(strange)
	for range 50 {
		p.publish(newBatch(10))
	}
	waits := func(stored int) func() bool {
		return func() bool {
			return p.counted("select count(*) from ingest.batch") == stored && p.status().AckPending == 1
		}
	}
	p.eventually("all but one are acknowledged", waits(50))
	backup := p.backup()
	p.publish(newBatch(10))
	p.eventually("one more", waits(51))
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()
	p.rewind(backup)
	require.Equal(t, 50, p.batches(), "it is lost")
	p.start()
	p.eventually("it is stored again", waits(51))
	require.Equal(t, 510, p.rows())
	require.Empty(t, p.holds(), "no alarm, for that would be one at every start")
}
