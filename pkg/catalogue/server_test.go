package catalogue_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

// onEveryServer runs f with a database of its own on the server of the tests
// and on a private server of each version that this host has installed.
func onEveryServer(t *testing.T, f func(t *testing.T, databaseURL string)) {
	t.Run("server of the tests", func(t *testing.T) {
		t.Parallel()
		f(t, testdb.Empty(t))
	})
	for major := catalogue.OldestServer; major <= catalogue.NewestServer; major++ {
		t.Run(fmt.Sprintf("installed %d", major), func(t *testing.T) {
			t.Parallel()
			f(t, startInstalled(t, major))
		})
	}
}

// startInstalled starts a private server of a version that the host's packages
// brought, or that lies in the folder TEST_POSTGRES_ROOT in the same way, and
// returns the URL of its first database. It skips the test where there is none.
func startInstalled(t *testing.T, major int) string {
	t.Helper()
	bin := filepath.Join(cmp.Or(os.Getenv("TEST_POSTGRES_ROOT"), "/usr/lib/postgresql"), strconv.Itoa(major), "bin")
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		t.Skipf("PostgreSQL %d is not installed in %s", major, bin)
	}
	home, err := os.MkdirTemp("", "pganalytics-pg")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })

	as := serverUser(t, home)
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(home, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
	initdb.SysProcAttr, initdb.Dir = as, home
	out, err := initdb.CombinedOutput()
	require.NoError(t, err, "%s", out)

	// A socket in its own folder instead of a port, so that no other program can be in the way.
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", filepath.Join(home, "data"), "-k", home,
		"-c", "listen_addresses=", "-c", "shared_preload_libraries=pg_stat_statements", "-c", "fsync=off")
	server.SysProcAttr, server.Dir = as, home
	log, err := os.Create(filepath.Join(home, "log"))
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	server.Stderr = log
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})

	url := fmt.Sprintf("host=%s user=postgres dbname=postgres", home)
	ready := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			_ = conn.Close(ctx)
		}
		return err == nil
	}
	require.Eventually(t, ready, time.Minute, 50*time.Millisecond)
	return url
}

// serverUser gives home to a user who may run a server: root must not.
func serverUser(t *testing.T, home string) *syscall.SysProcAttr {
	t.Helper()
	as := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return as
	}
	u, err := user.Lookup("postgres")
	require.NoError(t, err)
	uid, err := strconv.Atoi(u.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(u.Gid)
	require.NoError(t, err)
	require.NoError(t, os.Chown(home, uid, gid))
	as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return as
}

// connect opens a session that ends with the test.
func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// monitor opens a session as a role that has pg_monitor and nothing else, with
// the limits that a collector sets.
func monitor(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn := connect(t, databaseURL)
	role := "pganalytics_monitor_" + strings.ToLower(t.Name()[strings.LastIndex(t.Name(), "/")+1:])
	role = pgx.Identifier{fmt.Sprintf("%.40s_%d", role, time.Now().UnixNano())}.Sanitize()
	execute(t, conn, "create role "+role+" in role pg_monitor")
	t.Cleanup(func() { execute(t, conn, "reset all", "reset role", "drop role "+role) })
	execute(t, conn, "set role "+role, "set statement_timeout = '30s'", "set lock_timeout = '100ms'",
		"set default_transaction_read_only = on")
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := conn.Exec(context.Background(), s)
		require.NoError(t, err, s)
	}
}

// major returns the server's major version.
func major(t *testing.T, conn *pgx.Conn) int {
	t.Helper()
	var num int
	require.NoError(t, conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&num))
	return num / 10000
}
