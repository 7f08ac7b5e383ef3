package chaos

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// The check must see every way to break the promise, or its silence means
// nothing.
func TestTheCheckSeesWhatIsBroken(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{collectors: 2})
	s.eventually("batches", func() bool { return f.taken.Load() > 3 })
	f.stop()
	s.ingest(ingesterConfig{})
	s.verify()
	journal, conn := s.journal.read(t), s.connect()
	oldest := time.Now().Add(-retention)
	victim := journal[1].Batch
	found := func(v *verdict) [4]int { return [4]int{v.lost, v.twice, v.altered, v.strange} }

	for _, c := range []struct {
		harm string // done to one batch
		want verdict
	}{
		{"select $1::uuid", verdict{}},
		{"delete from ingest.batch where batch_id = $1", verdict{lost: 1}},
		{"delete from metrics.chaos_left where batch = $1 and n = 4", verdict{lost: 1}},
		{"delete from metrics.chaos_right where batch = $1", verdict{lost: 1}},
		{"insert into metrics.chaos_right select * from metrics.chaos_right where batch = $1 and n = 5", verdict{twice: 1}},
		{"insert into metrics.chaos_left select * from metrics.chaos_left where batch = $1", verdict{twice: 1}},
		{"update metrics.chaos_left set body = upper(body) where batch = $1 and n = 4", verdict{altered: 1}},
		{"update metrics.chaos_left set n = 6 where batch = $1 and n = 4", verdict{lost: 1, twice: 1, altered: 1}},
		{"update metrics.chaos_left set n = 20 where batch = $1 and n = 4", verdict{lost: 1, strange: 1}},
		{"update metrics.chaos_left set batch = gen_random_uuid() where batch = $1 and n = 4", verdict{lost: 1, strange: 1}},
		{"update ingest.batch set digest = '\\x00' where batch_id = $1", verdict{altered: 1}},
		{"update ingest.batch set batch_id = gen_random_uuid() where batch_id = $1", verdict{lost: 1, strange: 1}},
		{`insert into ingest.batch (sent_at, collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections)
		  select sent_at + interval '1 second', collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections
		  from ingest.batch where batch_id = $1`, verdict{twice: 1}},
	} {
		sql(t, conn, "begin")
		_, err := conn.Exec(t.Context(), c.harm, victim)
		require.NoError(t, err, c.harm)
		v := judge(journal, s.gather(conn), oldest)
		sql(t, conn, "rollback")
		require.Equal(t, found(&c.want), found(v), "%s: %v", c.harm, v.faults)
	}

	e := s.gather(conn)
	e.letters[victim] = []batch.Letter{{BatchID: victim}}
	require.Equal(t, [4]int{0, 1, 1, 0}, found(judge(journal, e, oldest)), "stored, and a letter of something else")
	delete(e.ledger, victim)
	require.Equal(t, [4]int{0, 0, 1, 2}, found(judge(journal, e, oldest)), "a letter for no fault, with rows in the tables")
	e = s.gather(conn)
	e.letters[uuid.New()] = make([]batch.Letter, 1)
	require.Equal(t, [4]int{0, 0, 0, 1}, found(judge(journal, e, oldest)), "a letter of nobody")
	require.Equal(t, [4]int{0, 0, 0, 0}, found(judge(journal, s.gather(conn), oldest)))
	journal[1].Faulty = true
	require.Equal(t, [4]int{0, 0, 1, 0}, found(judge(journal, s.gather(conn), oldest)), "stored although nobody can")
}
