package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/policy/pulled"
)

// pulling is a system whose collector asks for its configuration every second.
func pulling(t *testing.T) *system {
	t.Helper()
	// What the stream loses it must not remember as there already.
	s := newSystem(t, "", "--check-in", "1s", "--trim-interval", "200ms", "--nats-duplicate-window", "1s")
	s.startServe()
	s.enrol("db1", s.state())
	s.startCollector()
	s.eventually("it collects", func() bool { return s.number("select count(*) from metrics.pg_locks") > 0 })
	return s
}

// jetstream is the stream's server, as whoever has broken in would use it.
func (s *system) jetstream() jetstream.JetStream {
	s.t.Helper()
	password, err := os.ReadFile(filepath.Join(s.data(), "nats", "password"))
	require.NoError(s.t, err)
	nc, err := nats.Connect(s.endpoints.NATS, nats.UserInfo("operator", string(password)))
	require.NoError(s.t, err)
	s.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(s.t, err)
	return js
}

func (s *system) locks() int {
	return s.number("select count(*) from metrics.pg_locks where time > now() - interval '3 seconds'")
}

func TestACollectorReadsWhatItsOperatorsSay(t *testing.T) {
	t.Parallel()
	s := pulling(t)
	p := s.page(nil, "")
	do := func(line string) string {
		t.Helper()
		out, status := p.paste(line)
		require.Zero(t, status, out)
		return out
	}
	told := func(pattern string) {
		t.Helper()
		s.eventually(pattern, func() bool { return regexp.MustCompile(pattern).MatchString(do("pganalytics config get db1")) })
	}
	do(`echo "servers: {watched: {families: {pg_locks: off}}}" | pganalytics config set db1 --file - --comment "no locks"`)
	told("the collector runs version 1, ")
	s.eventually("no locks any more", func() bool { return s.locks() == 0 })

	// What no operator could set: whoever can write the bucket.
	js := s.jetstream()
	id, err := uplink.LoadIdentity(s.state())
	require.NoError(t, err)
	bucket, err := js.KeyValue(t.Context(), "config")
	require.NoError(t, err)
	hostile, err := json.Marshal(pulled.Record{Version: 2, Document: "servers: {watched: {conninfo: host=elsewhere, families: {pg_locks: {sql: drop}}}}"})
	require.NoError(t, err)
	_, err = bucket.Put(t.Context(), "document."+id.CollectorID.String(), hostile)
	require.NoError(t, err)
	told(`the collector runs version 1, .*it refuses version 2: .*has no key "conninfo".*has no key "sql"`)
	require.Zero(t, s.locks(), "the version before is in force")

	s.collector.stop(t)
	s.startCollector()
	told("the collector runs version 1, ")
	require.Zero(t, s.locks(), "from the start on")

	require.Contains(t, do(`pganalytics config rollback db1 --to 1 --comment "again" --expect-version 1`), "version 3")
	told("the collector runs version 3, ")
	do(`pganalytics config unset db1 --comment "back"`)
	told("the collector runs version 4, ")
	s.eventually("locks again", func() bool { return s.locks() > 0 })
	s.collector.stop(t)
	s.everythingStoredOnce()
}

// A batch was acknowledged to the collector, and then stream and database lost it.
func TestALostBatchIsSentAgainAndStoredOnce(t *testing.T) {
	t.Parallel()
	s := pulling(t)
	s.eventually("some batches", func() bool { return s.number("select count(*) from ingest.batch") > 8 })
	js := s.jetstream()
	stream, err := js.Stream(t.Context(), "BATCHES")
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(uint64(s.number("select max(stream_seq) from ingest.batch where sequence < 7")+1))))
	lost := []int{3, 4, 6}
	for _, n := range lost {
		s.forget(n)
	}
	p := s.page(nil, "")
	out, status := p.paste("pganalytics verify")
	require.Equal(t, 2, status, out)
	require.Contains(t, out, "found 3 lost batches: verify --fix asks the collectors")
	out, status = p.paste("pganalytics verify --fix --yes")
	require.Equal(t, 2, status, out)
	require.Regexp(t, `Collector \S+ is asked to send 3 batches again`, out)
	s.eventually("nothing is lost", func() bool {
		out, status = p.paste("pganalytics verify")
		return status == 0
	})
	for _, n := range lost {
		require.Equal(t, 1, s.number("select count(*) from ingest.batch where sequence = $1", n))
	}
	out, _ = p.paste("pganalytics config get db1 --output json")
	require.Contains(t, strings.ReplaceAll(out, " ", ""), `"found":3`)
	s.collector.stop(t)
	s.everythingStoredOnce()
}

// forget takes a batch and its rows out of the database.
func (s *system) forget(sequence int) {
	s.t.Helper()
	s.exec(`
do $$ declare x record; begin
  for x in select b.collector_id, y.* from ingest.batch b, jsonb_to_recordset(b.sections) as y(family text, server_id uuid, min_time timestamptz, max_time timestamptz)
           where b.sequence = ` + strconv.Itoa(sequence) + ` loop
    if exists (select from information_schema.columns where table_schema = 'metrics' and table_name = x.family and column_name = 'time') then
      execute format('delete from metrics.%I where server_id = $1 and time between $2 and $3', x.family) using x.server_id, x.min_time, x.max_time;
    end if;
  end loop;
  delete from ingest.batch where sequence = ` + strconv.Itoa(sequence) + `;
end $$`)
}
