package pgread

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testpg"
	"pganalytics/pkg/policy"
)

// helped reads a function that an administrator was to make.
const helped = "select pganalytics.helper(array [1])::text as datname, 1::bigint as v"

// helper is made by whoever is the role; x is what it has beside.
func helper(role, parameters, x string) []string {
	return []string{
		"drop schema if exists pganalytics cascade",
		"create schema pganalytics authorization " + role,
		"grant usage on schema pganalytics to watcher",
		"set role " + role,
		"create function pganalytics.who() returns text language sql as 'select current_user::text'",
		"create function pganalytics.helper(ids integer[]" + parameters + ") returns text language sql " + x + " as 'select current_user::text'",
		"reset role",
	}
}

func TestAFunctionInAStrangersHandsIsNotCalled(t *testing.T) {
	onVersions(t, func(t *testing.T, s *testpg.Server) {
		s.Exec("postgres", "create role watcher login", "grant pg_monitor to watcher", "create role stranger login",
			"create role provider createrole", "grant pg_monitor to provider")
		cat := load(t, requiring("helped", "function: pganalytics.helper", helped))
		check := func(more ...string) FamilyReport {
			t.Helper()
			s.Exec("postgres", more...)
			server, err := NewServer(Config{Name: "db1", Conninfo: s.URLAs("watcher", "postgres"), Families: policy.Policy{}.Resolve(cat)}, cat,
				slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
			require.NoError(t, err)
			report, err := server.Check(t.Context())
			require.NoError(t, err)
			require.NoError(t, report.Families[0].Err)
			return report.Families[0]
		}
		stranger := &Off{NotTrusted, "pganalytics.helper"}
		require.Equal(t, stranger, check(helper("stranger", "", "")...).Off, "it runs as the collector's role")
		require.Equal(t, stranger, check(helper("stranger", ", who text default pganalytics.who()", "security definer")...).Off,
			"a default runs as the collector's role, whatever the function runs as")
		require.Equal(t, stranger, check(append(helper("postgres", "", "security definer"), "alter schema pganalytics owner to stranger")...).Off,
			"the owner of the schema may replace it")
		require.Equal(t, stranger, check(append(helper("postgres", "", "security definer"), "grant create on schema pganalytics to public")...).Off,
			"anybody may put one beside it that fits better")
		require.Equal(t, stranger, check(append(helper("postgres", "", "security definer"),
			"create function pganalytics.helper(ids bigint[]) returns text language sql as 'select 1::text'",
			"alter function pganalytics.helper(bigint[]) owner to stranger")...).Off, "one of another's stands beside it")

		require.Nil(t, check(helper("postgres", "", "security definer")...).Off, "a superuser's")
		require.Nil(t, check(helper("provider", "", "security definer")...).Off, "that of a provider's administrator, who has pg_monitor")
		require.Equal(t, 1, check().Rows)
		require.Equal(t, stranger, check("grant pg_read_server_files to watcher").Off, "the collector has more than its owner")
		require.Nil(t, check(helper("postgres", "", "security definer")...).Off)
		require.Equal(t, stranger, check(append(helper("provider", "", ""), "alter role watcher superuser")...).Off, "and all, as a superuser")
		require.Nil(t, check(helper("postgres", "", "")...).Off)
	})
}

func TestAFunctionOfAnotherSchemaIsCalledWithItsOwnersRights(t *testing.T) {
	onVersions(t, func(t *testing.T, s *testpg.Server) {
		s.Exec("postgres", "create role watcher login", "grant pg_monitor to watcher", "create role shopkeeper", "create schema shop authorization shopkeeper",
			"grant usage on schema shop to watcher", "create function shop.orders() returns text language sql security definer as 'select current_user::text'",
			"alter function shop.orders() owner to shopkeeper")
		cat := load(t, requiring("orders", "function: shop.orders", "select shop.orders() as datname, 1::bigint as v"))
		cfg := Config{Name: "db1", Conninfo: s.URLAs("watcher", "postgres"), LookAgain: time.Millisecond}
		r := start(t, cfg, cat)
		require.Equal(t, "shopkeeper", table(t, r.of("orders"))[0][0])
		s.Exec("postgres", "alter function shop.orders() security invoker")
		r.eventually(func() bool { return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", "orders", missing)) > 0 }, "it is off")
	})
}
