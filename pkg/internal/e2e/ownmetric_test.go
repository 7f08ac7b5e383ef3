package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// docs/collector.md, "Metrics of your own", with its own files.
func TestAMetricOfOnesOwnIsStoredAndHasRates(t *testing.T) {
	t.Parallel()
	examples, err := filepath.Abs("../../../docs/examples")
	require.NoError(t, err)
	own := filepath.Join(examples, "catalogue")
	s := newSystem(t, "", "--catalogue-dir", own)
	shop, err := os.ReadFile(filepath.Join(examples, "shop.sql"))
	require.NoError(t, err)
	s.exec(strings.ReplaceAll(string(shop), "to pganalytics;", "to current_user;"))
	s.exec("insert into shop.orders (status) values ('new'), ('new'), ('paid')")
	s.startServe()
	s.enrol("c1", s.state())

	db, err := pgx.ParseConfig(s.db)
	require.NoError(t, err)
	config := filepath.Join(s.dir, "shop.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `servers: [{name: shop, conninfo_env: WATCHED}]
preset: minimal
families: {shop_orders: {interval: 1s}}
databases: {include: [%s]}
`, db.Database), 0o600))
	s.collector = s.run("collector", "run", "--state-dir", s.state(), "--config", config, "--catalogue-dir", own, "--admin-listen", "127.0.0.1:0")
	s.eventually("rows are stored", func() bool {
		return s.number("select count(*) from metrics.shop_orders where status = 'new' and orders = 2 and entered = 2") > 1
	})
	s.exec("insert into shop.orders (status) select 'new' from generate_series(1, 5)")
	s.eventually("five orders are five in the rates", func() bool {
		return s.number("select count(*) from metrics.shop_orders where status = 'new' and orders = 7 and entered = 7") > 1
	})
	require.Equal(t, 5, s.number(`select round(sum(entered * seconds))::int from metrics.shop_orders_rates
		where status = 'new' and time > now() - interval '1 hour'`))
	require.Equal(t, 1, s.number(`select count(distinct s.name)::int from metrics.shop_orders join metrics.server s using (server_id) where s.name = 'shop'`))
	s.collector.stop(t)
	s.serve.stop(t)
}
