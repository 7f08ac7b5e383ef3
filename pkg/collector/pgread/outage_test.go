package pgread

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/internal/testpg"
	"pganalytics/pkg/policy"
)

// instance is pg_instance with one column.
var instance = strings.NewReplacer(
	"  - {name: datname, type: text, help: x}\n", "", "key: [datname]\n", "",
	"{name: v, type: bigint, kind: gauge", "{name: is_up, type: boolean, kind: gauge",
).Replace(family("pg_instance", "instance", "select true::boolean as is_up"))

func up(t *testing.T, value string) func(*batch.Section) bool {
	return func(s *batch.Section) bool { return s.Family == "pg_instance" && table(t, s)[0][0] == value }
}

// The next reading of pg_instance is far away: the row comes of the connection
// that is lost.
func TestAServerThatDiesWhileItIsReadIsSaidToBeDownAtOnce(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, 18)
	cat := load(t, instance, family("slow", "instance", "select 'x'::text as datname, 1::bigint as v from pg_sleep(100)"))
	r := start(t, Config{
		Name: "db1", Conninfo: s.URL("postgres"), StatementTimeout: 2 * time.Minute,
		Families: map[string]policy.Reading{"pg_instance": {Interval: time.Hour}, "slow": {Interval: 7 * time.Second}},
	}, cat)
	r.next("up", up(t, "true"))
	r.eventually(func() bool {
		return testpg.Value[int](s, "postgres", "select count(*)::int from pg_stat_activity where state = 'active' and query like '%pg_sleep(100)%' and application_name <> ''") == 1
	}, "it is being read")
	s.Kill()
	killed := time.Now()
	r.next("down", up(t, "false"))
	require.Less(t, time.Since(killed), 30*time.Second)
	require.Contains(t, r.log(), "connection lost while reading")
}

func TestALostConnectionToAServerThatIsThereIsNotSaidToBeDown(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, 18)
	cat := load(t, instance, family("slow", "instance", "select 'x'::text as datname, 1::bigint as v from pg_sleep(100)"))
	r := start(t, Config{
		Name: "db1", Conninfo: s.URL("postgres"), StatementTimeout: 2 * time.Minute,
		Families: map[string]policy.Reading{"pg_instance": {Interval: time.Second}, "slow": {Interval: 7 * time.Second}},
	}, cat)
	const reading = "from pg_stat_activity where state = 'active' and query like '%pg_sleep(100)%' and application_name <> ''"
	r.eventually(func() bool { return testpg.Value[int](s, "postgres", "select count(*)::int "+reading) == 1 }, "it is being read")
	require.True(t, testpg.Value[bool](s, "postgres", "select pg_terminate_backend(pid) "+reading))
	first := r.next("any", func(s *batch.Section) bool { return s.Family == "pg_instance" })
	require.Equal(t, "true", table(t, first)[0][0])
}

func TestAFamilyThatTimesOutCostsOneTimeoutARound(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, 18)
	for i := range 4 {
		s.Exec("postgres", fmt.Sprintf("create database many_%d", i))
	}
	cat := load(t, family("hangs", "database", "select 'x'::text as datname, 1::bigint as v from pg_sleep(60)"), family("number", "database", number))
	r := start(t, Config{
		Name: "db1", Conninfo: s.URL("postgres"), Include: []string{"many_*"}, StatementTimeout: time.Second,
		Families: map[string]policy.Reading{"hangs": {Interval: time.Hour}, "number": {Interval: time.Hour}},
	}, cat)
	read := map[string]bool{}
	for len(read) < 4 {
		read[table(t, r.of("number"))[0][0]] = true
	}
	r.eventually(func() bool { return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", "hangs", spent)) == 3 }, "not in the other three")
	require.InDelta(t, 1, testutil.ToFloat64(r.metrics.queryErrors.WithLabelValues("db1", "hangs")), 0)
}

func TestEveryDatabaseHasItsTurnAlthoughAFamilyTimesOutInOne(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, 18)
	s.Exec("postgres", "create database a_slow", "create database b_fast")
	cat := load(t, family("hangs", "database",
		"select current_database()::text as datname, 1::bigint as v from pg_sleep(case current_database() when 'a_slow' then 60 else 0 end)"))
	r := start(t, Config{Name: "db1", Conninfo: s.URL("postgres"), Include: []string{"?_*"}, StatementTimeout: time.Second}, cat)
	require.Equal(t, "b_fast", table(t, r.of("hangs"))[0][0])
}
