package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

const (
	eventually = 20 * time.Second
	tick       = 10 * time.Millisecond
)

func TestKilledServerIsUnavailableAndTheRetryStoresOnce(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	migrate(t, cluster.URL(), allFamilies(t))
	f := open(t, cluster.URL(), allFamilies(t))
	c := uuid.New()
	first, it := item(c, now, narrow(c, "db1", now, 1)), item(c, now, narrow(c, "db1", now, 2))
	f.load(first)
	_, err := f.conn.Exec(t.Context(), "begin; lock table metrics.narrow in access exclusive mode")
	require.NoError(t, err)
	blocked, cancel := untilBlocked(f)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Load(t.Context(), []batch.Item{it})
		done <- err
	}()
	<-blocked.Done()
	cluster.Kill()
	require.Equal(t, fault.Unavailable, fault.ClassOf(<-done))
	require.Equal(t, fault.Unavailable, fault.ClassOf(f.store.Probe(t.Context())))
	cluster.Start()
	require.Eventually(t, func() bool { return f.store.Probe(t.Context()) == nil }, eventually, tick)
	require.Equal(t, []batch.Outcome{batch.Stored, batch.AlreadyStored}, f.load(it, first))
	f.conn = connect(t, cluster.URL())
	require.Equal(t, [2]int{2, 3}, f.counts())

	// Started with fsync off, the same server is refused.
	f.exec("alter system set fsync = off")
	cluster.Stop()
	cluster.Start()
	require.Eventually(t, func() bool { // after the sessions that the stop ended
		err := f.store.Probe(t.Context())
		return err != nil && strings.Contains(err.Error(), "fsync = off")
	}, eventually, tick)
	_, err = f.store.Load(t.Context(), []batch.Item{it})
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	require.ErrorContains(t, store.Migrate(t.Context(), cluster.URL()), "fsync = off")
}

// The database commits and its answer is lost on the way.
func TestCommitOfUnknownOutcomeIsUnavailableAndTheLedgerSettlesIt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	it := item(c, now, narrow(c, "db1", now, 2))
	cut := open(t, cutAfter(t, f.url, lastWord), allFamilies(t))
	cut.store.NoteAckFloor(lastWord, 1)
	_, err := cut.store.Load(t.Context(), []batch.Item{it})
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	require.Eventually(t, func() bool { return f.counts() == [2]int{1, 2} }, eventually, tick)
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(it))
	require.Equal(t, [2]int{1, 2}, f.counts())
}

func TestReadOnlyDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.exec("do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$")
	fresh := open(t, f.url, allFamilies(t))
	err := fresh.store.Probe(t.Context())
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	require.Equal(t, "25006", store.SQLState(err))
	c := uuid.New()
	_, err = fresh.store.Load(t.Context(), []batch.Item{item(c, now, narrow(c, "db1", now, 2))})
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
}

func TestSessionsAreDurableWhateverTheDatabaseSays(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.exec(`do $$ begin
		execute format('alter database %I set synchronous_commit = off', current_database());
		execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database());
		execute format('alter database %I set default_transaction_isolation = ''serializable''', current_database());
	end $$`)
	// What a session that loads has set, as its own COPY sees it.
	f.exec(`alter table metrics.narrow add column settings text default current_setting('synchronous_commit') || ' ' || current_setting('timezone') || ' ' ||
		current_setting('transaction_isolation') || ' ' || current_setting('statement_timeout') || ' ' || current_setting('lock_timeout') || ' ' ||
		current_setting('idle_in_transaction_session_timeout') || ' ' || current_setting('tcp_user_timeout') || ' ' || current_setting('tcp_keepalives_idle')`)
	fresh := open(t, f.url, allFamilies(t))
	c := uuid.New()
	fresh.load(item(c, now, narrow(c, "db1", now, 1)))
	require.Equal(t, "on UTC read committed 1min 10s 30s 30000 10", ask[string](f, "select settings from metrics.narrow"))
}

func TestProbeWrites(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.NoError(t, f.store.Probe(t.Context()))
	at := ask[time.Time](f, "select max(at) from ingest.progress")
	require.NoError(t, f.store.Probe(t.Context()))
	require.True(t, ask[time.Time](f, "select max(at) from ingest.progress").After(at))
	require.Equal(t, 1, ask[int](f, "select count(*) from ingest.progress"))
}

func TestConfigNamesAllFaultsAndHidesTheURL(t *testing.T) {
	t.Parallel()
	err := store.Config{MaxConns: -1, LockTimeout: time.Nanosecond, StatementTimeout: 2 * time.Hour}.Validate()
	require.EqualError(t, err, `--database-url: is empty
--database-max-conns: -1 is not from 1 to 1000
--database-statement-timeout: 2h0m0s is not from 1ms to 1h0m0s
--database-lock-timeout: 1ns is not from 1ms to 1h0m0s`)
	cfg := store.Config{URL: "postgres://u:secret@127.0.0.1:x/db"}
	require.NotContains(t, cfg.Validate().Error(), "secret")
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, struct{ C store.Config }{cfg}), "secret")
	require.NoError(t, store.Config{URL: "postgres://u@127.0.0.1/db"}.Validate())
}

// lastWord as the name of the stream stands in what a load sends together with
// its commit, and nowhere before.
const lastWord = "commits after this"

// cutAfter returns the URL of a way to the database that breaks as soon as
// the database has answered the message that holds word: the answer is lost.
func cutAfter(t *testing.T, databaseURL, word string) string {
	return cut(t, databaseURL, word, answerLost)
}

// cutBefore is cutAfter, but the database never sees the message.
func cutBefore(t *testing.T, databaseURL, word string) string {
	return cut(t, databaseURL, word, questionLost)
}

type lost int

const (
	answerLost lost = iota
	questionLost
)

func cut(t *testing.T, databaseURL, word string, what lost) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var ways sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); ways.Wait() })
	database := u.Host
	ways.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			ways.Go(func() { carry(client, database, []byte(word), what) })
		}
	})
	u.Host = listener.Addr().String()
	return u.String()
}

func carry(client net.Conn, database string, word []byte, what lost) {
	defer client.Close()
	server, err := net.Dial("tcp", database)
	if err != nil {
		return
	}
	defer server.Close()
	said := make(chan struct{})
	var back sync.WaitGroup
	back.Go(func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			select {
			case <-said:
				return
			default:
			}
			if _, writeErr := client.Write(buf[:n]); err != nil || writeErr != nil {
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if bytes.Contains(buf[:n], word) {
			if what == questionLost {
				break
			}
			close(said)
		}
		if _, writeErr := server.Write(buf[:n]); writeErr != nil || err != nil {
			break
		}
	}
	if err := server.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, io.EOF) {
		_ = server.Close()
	}
	back.Wait()
}
