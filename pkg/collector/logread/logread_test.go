package logread

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// csvLine is a record as PostgreSQL 13 writes it, whose message is quoted.
func csvLine(severity, state, message string) string {
	return `2026-01-02 03:04:05.678 UTC,"app","shop",4242,"[local]",69573b25.1092,3,"INSERT",2026-01-02 03:00:00 UTC,5/7,0,` +
		severity + `,` + state + `,"` + strings.ReplaceAll(message, `"`, `""`) + `",,,,,,"insert into t values (1,` + "\n" + `2)",,,"psql"` + "\n"
}

func jsonLine(severity, state, message string) string {
	if state != "" {
		state = fmt.Sprintf(`"state_code":%q,`, state)
	}
	return fmt.Sprintf(`{"timestamp":"2026-01-02 03:04:05.678 UTC","error_severity":%q,%s"message":%q}`+"\n", severity, state, message)
}

type setup struct {
	*Follower
	t   *testing.T
	dir string
}

// follow begins to follow a folder in which one file has lines already.
func follow(t *testing.T, pattern, first, content string) setup {
	t.Helper()
	s := setup{t: t, dir: t.TempDir()}
	s.write(first, content)
	var err error
	s.Follower, err = New(filepath.Join(s.dir, pattern))
	require.NoError(t, err)
	require.Empty(t, s.read(), "what was logged before is not counted")
	return s
}

func (s setup) write(name, content string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(s.t, err)
	_, err = f.WriteString(content)
	require.NoError(s.t, err)
	require.NoError(s.t, f.Close())
}

// read returns what was logged, with what was unreadable under the empty key.
func (s setup) read() map[Key]int64 {
	s.t.Helper()
	count, err := s.Read()
	require.NoError(s.t, err)
	if count.Unreadable > 0 {
		count.Messages[Key{}] = count.Unreadable
	}
	return count.Messages
}

var (
	syntax = Key{"ERROR", "42601"}
	unique = Key{"ERROR", "23505"}
	plain  = Key{"LOG", "00000"}
)

func TestEachMessageIsCountedOnceWhateverItsTextHolds(t *testing.T) {
	t.Parallel()
	for _, format := range []struct {
		ext  string
		line func(severity, state, message string) string
	}{{"csv", csvLine}, {"json", jsonLine}} {
		s := follow(t, "*."+format.ext, "a."+format.ext, format.line("PANIC", "XX000", "long ago"))
		hostile := "say \"x\",\nERROR,42601,\"\"\r\n, 'y'\t\\"
		s.write("a."+format.ext, format.line("ERROR", "42601", hostile)+format.line("ERROR", "42601", "")+format.line("LOG", "00000", hostile))
		require.Equal(t, map[Key]int64{syntax: 2, plain: 1}, s.read(), format.ext)
		require.Empty(t, s.read(), "nothing is counted twice")
	}
}

func TestARecordIsCountedOnlyWhenItIsComplete(t *testing.T) {
	t.Parallel()
	s := follow(t, "*.csv", "a.csv", "")
	line := csvLine("ERROR", "23505", "two\nlines")
	for i := 1; i < len(line); i++ {
		s.write("a.csv", line[i-1:i])
		require.Empty(t, s.read(), "after %d bytes", i)
	}
	s.write("a.csv", line[len(line)-1:])
	require.Equal(t, map[Key]int64{unique: 1}, s.read())
}

func TestRotationLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	s := follow(t, "pg-*.json", "pg-1.json", jsonLine("LOG", "", "before"))
	s.write("pg-1.json", jsonLine("ERROR", "23505", "last of the first file"))
	s.write("pg-2.json", jsonLine("LOG", "", "first of the second file"))
	require.Equal(t, map[Key]int64{unique: 1, plain: 1}, s.read())

	require.NoError(t, os.Rename(filepath.Join(s.dir, "pg-2.json"), filepath.Join(s.dir, "pg-3.json")))
	require.Empty(t, s.read(), "a file keeps its place under another name")

	require.NoError(t, os.Truncate(filepath.Join(s.dir, "pg-3.json"), 0))
	s.write("pg-3.json", jsonLine("LOG", "", "x"))
	require.Equal(t, map[Key]int64{plain: 1}, s.read(), "a file that was cut back begins anew")

	require.NoError(t, os.Remove(filepath.Join(s.dir, "pg-1.json")))
	require.NoError(t, os.Remove(filepath.Join(s.dir, "pg-3.json")))
	_, err := s.Read()
	require.ErrorIs(t, err, fs.ErrNotExist)
	s.write("pg-4.json", jsonLine("LOG", "", "x"))
	require.Equal(t, map[Key]int64{plain: 1}, s.read(), "files may come back")
}

func TestWhatMakesNoSenseIsCountedAndPassedOver(t *testing.T) {
	t.Parallel()
	s := follow(t, "*.json", "a.json", jsonLine("LOG", "", "x"))
	bad := []string{"not json\n\n", jsonLine("my secret text", "42601", ""), jsonLine("ERROR", "?", "x"), jsonLine("LOG", "", strings.Repeat("y", 3*maxRecord))}
	for _, b := range bad {
		s.write("a.json", jsonLine("LOG", "", "x")+b+b+"\n"+jsonLine("ERROR", "42601", ""))
		require.Equal(t, map[Key]int64{plain: 1, syntax: 1, {}: 1}, s.read(), "%.20q", b)
	}

	s = follow(t, "*.csv", "a.csv", csvLine("LOG", "00000", "x"))
	s.write("a.csv", "one,two\n"+csvLine("ERROR", "42601", "")+"\"a quote that is never closed\n"+strings.Repeat(csvLine("LOG", "00000", "x"), 100))
	require.Equal(t, map[Key]int64{syntax: 1, plain: 100, {}: 1}, s.read(), "the first line may belong to a record from before")
}

func TestMuchIsReadInSeveralCallsWithinBounds(t *testing.T) {
	t.Parallel()
	s := follow(t, "*.json", "a.json", jsonLine("LOG", "", "x"))
	line := jsonLine("LOG", "", strings.Repeat("y", 100_000))
	lines := int64(maxRead/len(line) + 20)
	s.write("a.json", strings.Repeat(line, int(lines)))
	first := s.read()[plain]
	require.Less(t, first, lines)
	require.LessOrEqual(t, cap(s.buf), 2*maxRecord)
	require.Equal(t, lines, first+s.read()[plain])
}

func TestAPatternThatCannotBeFollowedIsRefused(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"", "log/*.csv", "/log/*.log", "/log/[.csv"} {
		_, err := New(pattern)
		require.Error(t, err, pattern)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(csvLine("ERROR", "42601", "x\"")), true)
	f.Add([]byte(jsonLine("ERROR", "42601", "x\"")), false)
	f.Fuzz(func(t *testing.T, data []byte, asCSV bool) {
		format := jsonlog
		if asCSV {
			format = csvlog
		}
		for len(data) > 0 {
			size := format.end(data)
			if size == 0 {
				return
			}
			if key, ok := format.key(data[:size]); ok && (len(key.Severity) > maxSeverity || len(key.SQLState) != 5) {
				t.Fatalf("%q", key)
			}
			data = data[size:]
		}
	})
}

func TestWhatARealServerLogsIsStoredBySQLState(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	logs := t.TempDir()
	require.NoError(t, os.Chmod(logs, 0o777))
	for dir := filepath.Dir(logs); strings.HasPrefix(dir, os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755)) // the server may run as another user
	}
	execute(t, cluster.URL(), "alter system set logging_collector = on", "alter system set log_destination = 'csvlog,jsonlog'",
		"alter system set log_directory = '"+logs+"'", "alter system set log_filename = 'pg.log'", "alter system set log_file_mode = 292") // 0444
	cluster.Stop()
	cluster.Start()

	for _, ext := range []string{"csv", "json"} {
		out, m := make(chan []batch.Section), NewMetrics(prometheus.NewRegistry())
		cat, err := catalogue.Default()
		require.NoError(t, err)
		r, err := NewReader(Config{
			CollectorID: uuid.MustParse("0198c0de-0000-7000-8000-000000000001"), Server: "db1",
			Files: filepath.Join(logs, "*."+ext), Interval: 50 * time.Millisecond,
		}, cat, slog.New(slog.DiscardHandler), m, out)
		require.NoError(t, err)
		require.Empty(t, r.read().Messages)

		conn, err := pgx.Connect(t.Context(), cluster.URL())
		require.NoError(t, err)
		for _, sql := range []string{"selec 1", "select 1/0", "select 'a\n\"b\",' / 0 -- ERROR,42601", "do $$ begin raise 'x' using errcode = 'P0042'; end $$"} {
			_, err := conn.Exec(t.Context(), sql)
			require.Error(t, err)
		}
		require.NoError(t, conn.Close(t.Context()))

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx); close(out) }()
		found := map[Key]int64{}
		for sections := range out {
			for _, s := range sections {
				require.Equal(t, "db1", s.Server)
				require.NoError(t, s.EachRow(func(_ int, fields [][]byte) error {
					key := Key{string(fields[2]), string(fields[3])}
					found[key] += int64(fields[4][7])
					return nil
				}))
			}
			if len(found) >= 4 {
				cancel()
			}
		}
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, int64(1), found[syntax], "%s: %v", ext, found)
		require.Equal(t, int64(1), found[Key{"ERROR", "22012"}], "%s: %v", ext, found)
		require.Equal(t, int64(1), found[Key{"ERROR", "22P02"}], "%s: %v", ext, found)
		require.Equal(t, int64(1), found[Key{"ERROR", "P0042"}], "%s: %v", ext, found)
		require.Zero(t, testutil.ToFloat64(m.unreadable.WithLabelValues("db1")))
	}
}

func execute(t *testing.T, url string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range statements {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
}
