package pgstore_test

import (
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy/pulled"
)

func newConfig(collector uuid.UUID, document string) pgstore.NewConfig {
	return pgstore.NewConfig{
		Collector: collector, Document: document, Author: "alice", Comment: "because", By: authsvc.Act{Actor: "cli:test", At: now},
	}
}

func TestVersionsRiseOverAllDocuments(t *testing.T) {
	t.Parallel()
	s := setup(t)
	one, other := enrolled(t, s, "db1").CollectorID, enrolled(t, s, "db2").CollectorID
	var added []pulled.Version
	for _, c := range []pgstore.NewConfig{
		newConfig(one, "{}"), newConfig(uuid.Nil, "preset: minimal"), newConfig(one, "preset: standard"), newConfig(other, ""),
	} {
		v, err := s.AddConfig(t.Context(), c)
		require.NoError(t, err)
		require.EqualValues(t, len(added)+1, v.Number)
		added = append(added, v)
	}
	require.Equal(t, pulled.Version{
		Number: 3, Collector: one, Document: "preset: standard", Author: "alice", Comment: "because", CreatedAt: now,
	}, added[2])

	newest, err := s.Config(t.Context(), one, 0)
	require.NoError(t, err)
	require.Equal(t, added[2], newest)
	first, err := s.Config(t.Context(), one, 1)
	require.NoError(t, err)
	require.Equal(t, added[0], first)
	_, err = s.Config(t.Context(), one, 2)
	require.ErrorIs(t, err, pgstore.ErrNoConfig, "that of another document")
	history, err := s.ConfigHistory(t.Context(), one, 10)
	require.NoError(t, err)
	require.Equal(t, []pulled.Version{added[2], added[0]}, history)
	all, err := s.NewestConfigs(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, added[1:], all)

	versions := map[string]int64{}
	list, _, err := s.ListCollectors(t.Context(), authsvc.CollectorQuery{Page: authsvc.Page{Number: 1, Size: 10}})
	require.NoError(t, err)
	for _, c := range list {
		versions[c.Name] = c.ConfigVersion
	}
	require.Equal(t, map[string]int64{"db1": 3, "db2": 4}, versions, "that which counts, as collectors are told")
}

func TestTwoOperatorsAtOnceLoseNoVersion(t *testing.T) {
	t.Parallel()
	s := setup(t)
	id := enrolled(t, s, "db1").CollectorID
	_, err := s.AddConfig(t.Context(), newConfig(id, "{}"))
	require.NoError(t, err)

	expect := int64(1)
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() {
			c := newConfig(id, "preset: minimal")
			c.Expect = &expect
			_, errs[i] = s.AddConfig(t.Context(), c)
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		require.Equal(t, fault.Precondition, fault.ClassOf(err), err)
		require.ErrorContains(t, err, "The newest version is 2, not 1")
	}
	require.Equal(t, 1, won)

	for i := range errs {
		wg.Go(func() { _, errs[i] = s.AddConfig(t.Context(), newConfig([]uuid.UUID{id, uuid.Nil}[i%2], "{}")) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	history, err := s.ConfigHistory(t.Context(), id, 100)
	require.NoError(t, err)
	require.Len(t, history, 7)
}

func TestAVersionAndItsAuditAreOneAct(t *testing.T) {
	t.Parallel()
	s := setup(t)
	id := enrolled(t, s, "db1").CollectorID
	for _, c := range []pgstore.NewConfig{newConfig(id, "{}"), newConfig(uuid.Nil, "{}"), newConfig(uuid.New(), "{}")} {
		_, err := s.AddConfig(t.Context(), c)
		if c.Collector != uuid.Nil && c.Collector != id {
			require.ErrorIs(t, err, authsvc.ErrNoCollector)
		} else {
			require.NoError(t, err)
		}
	}
	unsaid := newConfig(id, "{}")
	unsaid.Comment = ""
	_, err := s.AddConfig(t.Context(), unsaid)
	require.Error(t, err)
	entries, _, err := s.ListAudit(t.Context(), authsvc.AuditQuery{Action: "config.set", Page: authsvc.Page{Number: 1, Size: 10}})
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, "default", entries[0].ResourceID)
	require.Equal(t, id.String(), entries[1].ResourceID)
	require.Equal(t, "cli:test", entries[1].Actor)
	require.JSONEq(t, `{"from": 0, "to": 1, "author": "alice", "comment": "because"}`, string(entries[1].Changes))
}

func TestVersionsAreNeverChanged(t *testing.T) {
	t.Parallel()
	url := testdb.New(t)
	s, err := pgstore.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	_, err = s.AddConfig(t.Context(), newConfig(uuid.Nil, "{}"))
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	for _, sql := range []string{
		"update identity.collector_config set document = 'x'", "delete from identity.collector_config", "truncate identity.collector_config",
	} {
		_, err := conn.Exec(t.Context(), sql)
		require.ErrorContains(t, err, "append only", sql)
	}
}

// A database from a backup must not give a number again that is published.
func TestAVersionExceedsWhatIsPublished(t *testing.T) {
	t.Parallel()
	s := setup(t)
	c := newConfig(uuid.Nil, "{}")
	c.Above = 41
	v, err := s.AddConfig(t.Context(), c)
	require.NoError(t, err)
	require.EqualValues(t, 42, v.Number)
}

func TestACollectorIsFoundByNameAndId(t *testing.T) {
	t.Parallel()
	s := setup(t)
	want := enrolled(t, s, "db1").CollectorID
	for _, text := range []string{"db1", want.String()} {
		id, name, err := s.FindCollector(t.Context(), text)
		require.NoError(t, err)
		require.Equal(t, want, id)
		require.Equal(t, "db1", name)
	}
	_, _, err := s.FindCollector(t.Context(), "db2")
	require.ErrorIs(t, err, authsvc.ErrNoCollector)
}
