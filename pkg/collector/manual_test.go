package collector

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy"
	"pganalytics/schemas"
)

func docs(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	require.NoError(t, err)
	return string(text)
}

func TestTheManualsConfigurationIsTakenAndHasEveryKey(t *testing.T) {
	t.Parallel()
	manual := docs(t, "collector.md")
	example := regexp.MustCompile("(?s)```yaml\n(servers:.*?)```").FindStringSubmatch(manual)
	require.NotNil(t, example)
	text := strings.Replace(example[1], "/etc/pganalytics/db2.conninfo", secretFile(t, "host=db2"), 1)
	var cfg Config
	require.NoError(t, parseConfig("collector.md", []byte(text), defaultCatalogue(t), &cfg))
	require.Len(t, cfg.Servers, 2)
	source, err := os.ReadFile("configfile.go")
	require.NoError(t, err)
	keys := regexp.MustCompile(`(?m)(?:known\[|^\s*)"([a-z_]+)"(?:\]|:)`).FindAllStringSubmatch(string(source), -1)
	require.Greater(t, len(keys), 10)
	for _, key := range keys {
		require.Contains(t, manual, key[1], "a key that the manual does not have")
	}
	require.Contains(t, text, "spool: {dir: /var/lib/pganalytics-collector/spool, max_bytes: 1GiB")
}

func TestTheManualsOwnMetricIsRead(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Load(schemas.Metrics, os.DirFS(filepath.Join("..", "..", "docs", "examples", "catalogue")))
	require.NoError(t, err)
	db := testdb.Empty(t)
	own, role := prepare(t, db, cat)
	check := func() FamilyFinding {
		t.Helper()
		at, err := pgconn.ParseConfig(db)
		require.NoError(t, err)
		cfg := Config{
			StateDir: t.TempDir(), Servers: []Server{{Config: pgread.Config{Name: "shop", Conninfo: own}}},
			Policy: policy.Policy{Preset: catalogue.Minimal, Databases: policy.Databases{Include: []string{at.Database}},
				Families: map[string]policy.Setting{"shop_orders": {}}},
		}
		f, err := Check(t.Context(), cfg, cat, true)
		require.NoError(t, err)
		for _, family := range f.Servers[0].Families {
			if family.Family == "shop_orders" {
				return family
			}
		}
		require.Fail(t, "not looked at")
		return FamilyFinding{}
	}
	require.Equal(t, "function shop.orders_per_status is not in this database", check().Reason)

	shop := strings.ReplaceAll(docs(t, "examples/shop.sql"), "to pganalytics", `to "`+role+`"`)
	for range 2 {
		_, err = execute(t, db, shop)
		require.NoError(t, err)
	}
	_, err = execute(t, db, "insert into shop.orders (status) values ('new'), ('new'), ('paid'); update shop.orders set status = 'paid'")
	require.NoError(t, err)
	found := check()
	require.Equal(t, "collected 2", fmt.Sprint(found.State, " ", found.Rows), found.Reason)
	res, err := execute(t, own, "select status || ' ' || orders || ' ' || entered from shop.orders_per_status() order by 1")
	require.NoError(t, err)
	require.Equal(t, "new 0 2, paid 3 3", string(res[0].Rows[0][0])+", "+string(res[0].Rows[1][0]))
	_, err = execute(t, own, "select from shop.orders")
	require.ErrorContains(t, err, "42501")
}

// Not parallel: it sets variables.
func TestPasswordsComeFromLibpqsOwnPlaces(t *testing.T) {
	db := testdb.Empty(t)
	at, err := pgconn.ParseConfig(db)
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good := file("good", fmt.Sprintf("*:*:*:%s:%s\n", at.User, at.Password))
	wrong := file("wrong", "*:*:*:*:wrong\n")
	t.Setenv("PGSERVICEFILE", file("services", fmt.Sprintf("[watched]\nhost=%s\nport=%d\nuser=%s\ndbname=%s\n", at.Host, at.Port, at.User, at.Database)))
	plain := fmt.Sprintf("sslmode=disable host=%s port=%d user=%s dbname=%s", at.Host, at.Port, at.User, at.Database)
	faults := func(conninfo string) []string {
		t.Helper()
		cfg := Config{Servers: []Server{{Config: pgread.Config{Name: "x", Conninfo: conninfo}}}, Policy: policy.Policy{Preset: catalogue.Minimal}}
		cfg.Policy.Databases.Include = []string{at.Database}
		f, err := Check(t.Context(), cfg, defaultCatalogue(t), true)
		require.NoError(t, err)
		return f.Servers[0].Faults
	}
	t.Setenv("PGPASSFILE", wrong)
	require.NotEmpty(t, faults(plain))
	require.Empty(t, faults(plain+" passfile="+good))
	t.Setenv("PGPASSFILE", good)
	require.Empty(t, faults(plain))
	require.Empty(t, faults("service=watched sslmode=disable"))

	// A password that is changed in the file is used by the next connection.
	changing := file("changing", "*:*:*:*:wrong\n")
	server, err := pgread.NewServer(pgread.Config{Name: "x", Conninfo: plain + " passfile=" + changing},
		defaultCatalogue(t), slog.New(slog.DiscardHandler), pgread.NewMetrics(prometheus.NewRegistry()), nil)
	require.NoError(t, err)
	_, err = server.Check(t.Context())
	require.Error(t, err)
	require.NoError(t, os.Rename(good, changing))
	_, err = server.Check(t.Context())
	require.NoError(t, err)
}
