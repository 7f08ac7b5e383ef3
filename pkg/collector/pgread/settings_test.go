package pgread

import (
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testpg"
	"pganalytics/pkg/policy"
)

// onVersions runs a test on an old server and on a new one.
func onVersions(t *testing.T, f func(t *testing.T, s *testpg.Server)) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		s := testpg.Start(t, major)
		f(t, s)
	}
}

// What a session sends when it connects would be shown as the server's own.
func TestSettingsOfTheSessionHideNoneOfTheServers(t *testing.T) {
	onVersions(t, func(t *testing.T, s *testpg.Server) {
		s.Configure("statement_timeout = '77s'", "idle_in_transaction_session_timeout = '55s'", "timezone = 'Asia/Tokyo'",
			"client_encoding = 'LATIN1'", "search_path = 'theirs'")
		s.Restart()
		s.Exec("postgres", "create role watcher login", "grant pg_monitor to watcher",
			"create database ascii encoding 'SQL_ASCII' template template0")
		cat, err := catalogue.Default()
		require.NoError(t, err)
		for _, database := range []string{"postgres", "ascii"} {
			conninfo := s.URLAs("watcher", database) + "&timezone=Europe/Rome&statement_timeout=1"
			r := start(t, Config{Name: "db1", Conninfo: conninfo, Families: map[string]policy.Reading{"pg_settings": policy.Policy{}.Resolve(cat)["pg_settings"]}}, cat)
			got := map[string]string{}
			for _, row := range table(t, r.next("settings", func(s *batch.Section) bool { return s.Rows > 100 })) {
				got[row[0]] = row[1]
			}
			for name, want := range map[string]string{
				"statement_timeout": "77000", "idle_in_transaction_session_timeout": "55000", "TimeZone": "Asia/Tokyo",
				"client_encoding": "LATIN1", "default_transaction_read_only": "off", "search_path": "theirs",
			} {
				require.Equal(t, want, got[name], name)
			}
		}
	})
}
