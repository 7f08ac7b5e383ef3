package chaos

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testdb"
)

// smallDisk mounts one of size MiB that the server may write to.
func smallDisk(t *testing.T, dataDirectory string, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir, err := os.MkdirTemp("/var/tmp", "pganalytics-chaos-") // which the server's user can enter
	require.NoError(t, err)
	info, err := os.Stat(dataDirectory)
	require.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,uid=%d,gid=%d,mode=700", size, owner.Uid, owner.Gid)); err != nil {
		require.NoError(t, os.Remove(dir))
		t.Skipf("this host lets nobody mount a small disk: %v", err)
	}
	require.NoError(t, os.Chmod(dir, 0o700))
	t.Cleanup(func() {
		require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) // the server still has it open
		require.NoError(t, os.Remove(dir))
	})
	return dir
}

// fill leaves nothing free.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	file, err := os.Create(name)
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	return func() { require.NoError(t, os.Remove(name)) }
}

func TestADiskThatIsFullForTheWholeDatabaseLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	cluster, disk := clusterWithSmallDisk(t)
	sql(t, connectTo(t, cluster.URL()), "create database small tablespace small")
	u, err := url.Parse(cluster.URL())
	require.NoError(t, err)
	u.Path = "/small"
	newSite(t, siteConfig{db: u.String()}).fillTwice(disk, "public.large")
}

// The probe goes on to commit, so that nothing but the SQLSTATE tells that no
// batch is to blame.
func TestADiskThatIsFullForOneTableBuriesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	cluster, disk := clusterWithSmallDisk(t)
	s := newSite(t, siteConfig{db: cluster.URL()})
	sql(t, s.connect(), "select attach_tablespace('small', 'metrics.chaos_right')")
	s.fillTwice(disk, "public.large tablespace small")
}

func clusterWithSmallDisk(t *testing.T) (cluster *testdb.Cluster, disk string) {
	t.Helper()
	cluster = testdb.StartCluster(t)
	conn := connectTo(t, cluster.URL())
	var data string
	require.NoError(t, conn.QueryRow(t.Context(), "show data_directory").Scan(&data))
	disk = smallDisk(t, data, 96)
	sql(t, conn, "create tablespace small location '"+disk+"'")
	return cluster, disk
}

func (s *site) fillTwice(disk, table string) {
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	for range 2 {
		s.flowing(100)
		free := fill(s.t, disk)
		s.standsStill()
		require.Equal(s.t, "53100", s.whyNot(table))
		last(outage)
		free()
	}
	s.flowing(100)
	f.stop()
	s.verify()
}

// whyNot returns the SQLSTATE with which the database refuses a large table.
func (s *site) whyNot(table string) string {
	s.t.Helper()
	_, err := s.connect().Exec(s.t.Context(), "create table "+table+" as select repeat(n::text, 100) from generate_series(1, 100000) n")
	var pgErr *pgconn.PgError
	require.ErrorAs(s.t, err, &pgErr)
	return pgErr.Code
}
