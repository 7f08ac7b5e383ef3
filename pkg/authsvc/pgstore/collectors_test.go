package pgstore_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/internal/testdb"
)

var operator = authsvc.Act{Actor: "user:x", At: now, Source: netip.MustParseAddr("192.0.2.9")}

func enrolled(t *testing.T, s *pgstore.Store, name string) authsvc.Registration {
	t.Helper()
	r := registration(newToken(t, s, ""), name)
	_, err := s.Register(t.Context(), r)
	require.NoError(t, err)
	return r
}

func change(t *testing.T, s *pgstore.Store, id uuid.UUID, o authsvc.Operation) authsvc.Changed {
	t.Helper()
	done, err := s.ChangeCollector(t.Context(), authsvc.Change{CollectorID: id, Operation: o, By: operator})
	require.NoError(t, err)
	return done
}

func page(size int) authsvc.Page { return authsvc.Page{Number: 1, Size: size} }

func TestOperationsLeadToTheStatesOfTheTable(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for from, to := range map[identity.Status]map[authsvc.Operation]identity.Status{ // 0: conflict
		identity.Registered: {authsvc.Disable: identity.Disabled, authsvc.Enable: identity.Registered, authsvc.Unlock: 0},
		identity.Disabled:   {authsvc.Disable: identity.Disabled, authsvc.Enable: identity.Registered, authsvc.Unlock: 0},
		identity.Locked:     {authsvc.Disable: 0, authsvc.Enable: 0, authsvc.Unlock: identity.Registered},
	} {
		for operation, want := range to {
			r := enrolled(t, s, from.String()+" "+operation.String())
			switch from {
			case identity.Disabled:
				change(t, s, r.CollectorID, authsvc.Disable)
			case identity.Locked:
				lockUp(t, s, r)
			}
			before := recordOf(t, s, r.CollectorID)
			done, err := s.ChangeCollector(t.Context(), authsvc.Change{CollectorID: r.CollectorID, Operation: operation, By: operator})
			if want == 0 {
				require.ErrorIs(t, err, authsvc.ErrStatusConflict, "%s, %s", from, operation)
				require.Equal(t, before, recordOf(t, s, r.CollectorID))
				continue
			}
			require.NoError(t, err)
			require.Equal(t, want, done.Record.Status, "%s, %s", from, operation)
			require.True(t, done.Record.ChangedAt.After(before.ChangedAt), "verifiers take the later record, also if nothing changed")
			require.Equal(t, done.Record, recordOf(t, s, r.CollectorID))
		}
	}
	_, err := s.ChangeCollector(t.Context(), authsvc.Change{CollectorID: uuid.New(), Operation: authsvc.Disable, By: operator})
	require.ErrorIs(t, err, authsvc.ErrNoCollector)
}

// recordOf returns what verifiers would be told.
func recordOf(t *testing.T, s *pgstore.Store, id uuid.UUID) identity.Collector {
	t.Helper()
	all, _, err := s.Directory(t.Context(), now)
	require.NoError(t, err)
	for _, c := range all {
		if c.ID == id {
			return c
		}
	}
	return identity.Collector{}
}

// lockUp renews with the first certificate after the second was used.
func lockUp(t *testing.T, s *pgstore.Store, r authsvc.Registration) {
	t.Helper()
	renewal := authsvc.Renewal{CollectorID: r.CollectorID, Presented: r.Certificate, At: now, Certificate: newCertificate()}
	_, err := s.Renew(t.Context(), renewal)
	require.NoError(t, err)
	require.NoError(t, s.MarkUsed(t.Context(), map[string]time.Time{renewal.Certificate.Thumbprint: now}))
	renewal.Certificate = newCertificate()
	done, err := s.Renew(t.Context(), renewal)
	require.NoError(t, err)
	require.Equal(t, identity.Locked, done.Collector.Status)
}

func TestDeletedCollectorLeavesItsHistoryAndItsName(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := enrolled(t, s, "db1")
	again := token("", now)
	again.CollectorID = r.CollectorID
	require.NoError(t, s.CreateEnrollmentToken(t.Context(), again))
	done := change(t, s, r.CollectorID, authsvc.Delete)
	require.Len(t, done.Revocations, 1)
	require.Equal(t, r.Certificate.Thumbprint, done.Revocations[0].Thumbprint)

	found, total, err := s.ListCollectors(t.Context(), authsvc.CollectorQuery{Page: page(10)})
	require.NoError(t, err)
	require.Empty(t, found)
	require.Zero(t, total)
	_, err = s.ChangeCollector(t.Context(), authsvc.Change{CollectorID: r.CollectorID, Operation: authsvc.Enable, By: operator})
	require.ErrorIs(t, err, authsvc.ErrNoCollector, "nobody brings it back")
	_, err = s.Renew(t.Context(), authsvc.Renewal{CollectorID: r.CollectorID, Presented: r.Certificate, At: now, Certificate: newCertificate()})
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown)
	revived := registration(again, "db1")
	revived.CollectorID, revived.Again = r.CollectorID, true
	_, err = s.Register(t.Context(), revived)
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, "nor does a token that was made before")
	collectors, revocations, err := s.Directory(t.Context(), now)
	require.NoError(t, err)
	require.Len(t, collectors, 1, "verifiers keep refusing it by name")
	require.Equal(t, identity.Disabled, collectors[0].Status)
	require.Len(t, revocations, 1)

	second := enrolled(t, s, "db1")
	require.NotEqual(t, r.CollectorID, second.CollectorID)
}

func token(name string, at time.Time) authsvc.EnrollmentToken {
	return authsvc.EnrollmentToken{
		ID: uuid.NewString(), Hash: newCertificate().KeyHash, BoundName: name, CreatedBy: "cli:test",
		CreatedAt: at, ExpiresAt: at.Add(time.Hour),
	}
}

func TestReenrolmentKeepsTheCollectorAndRevokesAllItHad(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := enrolled(t, s, "db1")
	lockUp(t, s, r)
	unlock := token("", now)
	unlock.CollectorID = r.CollectorID
	done, err := s.ChangeCollector(t.Context(), authsvc.Change{CollectorID: r.CollectorID, Operation: authsvc.Unlock, By: operator, Token: &unlock})
	require.NoError(t, err)
	require.Len(t, done.Revocations, 2)
	stored, err := s.EnrollmentToken(t.Context(), unlock.ID)
	require.NoError(t, err)
	require.Equal(t, "db1", stored.BoundName)
	require.Equal(t, r.CollectorID, stored.CollectorID)

	again := registration(unlock, "db1")
	_, err = s.Register(t.Context(), again)
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, "it does not enrol a new collector")
	again.CollectorID, again.Again = r.CollectorID, true
	registered, err := s.Register(t.Context(), again)
	require.NoError(t, err)
	require.Equal(t, 3, registered.Record.Generation)
	require.Equal(t, again.Certificate.Thumbprint, registered.Record.Thumbprint)
	require.Empty(t, registered.Revocations, "they were already")
	require.Equal(t, registered.Record, recordOf(t, s, r.CollectorID))
	renewed, err := s.Renew(t.Context(), authsvc.Renewal{CollectorID: r.CollectorID, Presented: again.Certificate, At: now, Certificate: newCertificate()})
	require.NoError(t, err)
	require.Equal(t, 4, renewed.Collector.Generation)
	_, err = s.Renew(t.Context(), authsvc.Renewal{CollectorID: r.CollectorID, Presented: r.Certificate, At: now, Certificate: newCertificate()})
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown, "what was copied before neither renews nor locks")

	// Of a locked or a disabled collector a token that was made while it was usable is of no use.
	for name, refused := range map[string]error{"locked": authsvc.ErrCollectorLocked, "disabled": authsvc.ErrCollectorDisabled} {
		other := enrolled(t, s, name)
		early := token("", now)
		early.CollectorID = other.CollectorID
		require.NoError(t, s.CreateEnrollmentToken(t.Context(), early))
		if name == "locked" {
			lockUp(t, s, other)
		} else {
			change(t, s, other.CollectorID, authsvc.Disable)
		}
		attempt := registration(early, name)
		attempt.CollectorID, attempt.Again = other.CollectorID, true
		_, err = s.Register(t.Context(), attempt)
		require.ErrorIs(t, err, refused)
	}
}

func TestListTokenEnrolsEachOfItsNamesOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	list := token("", now)
	list.Names = []string{"a", "b", "c"}
	require.NoError(t, s.CreateEnrollmentToken(t.Context(), list))
	for _, name := range list.Names {
		stored, err := s.EnrollmentToken(t.Context(), list.ID)
		require.NoError(t, err)
		require.Equal(t, "usable", stored.Status(now))
		var wg sync.WaitGroup
		errs := make([]error, 10)
		for i := range errs {
			wg.Go(func() { _, errs[i] = s.Register(t.Context(), registration(list, name)) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused)
		}
		require.Equal(t, 1, won, name)
	}
	_, err := s.Register(t.Context(), registration(list, "d"))
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused)
	stored, err := s.EnrollmentToken(t.Context(), list.ID)
	require.NoError(t, err)
	require.Equal(t, "used", stored.Status(now))
	require.Equal(t, list.Names, stored.UsedNames)
}

func TestTokenBoundToASourceWorksFromThereOnly(t *testing.T) {
	t.Parallel()
	s := setup(t)
	bound := token("", now)
	bound.BoundSource = netip.MustParsePrefix("10.1.0.0/16")
	require.NoError(t, s.CreateEnrollmentToken(t.Context(), bound))
	r := registration(bound, "db1")
	for _, source := range []netip.Addr{{}, netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("2001:db8::1")} {
		r.Source = source
		_, err := s.Register(t.Context(), r)
		require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, source)
	}
	r.Source = netip.MustParseAddr("10.1.200.3")
	_, err := s.Register(t.Context(), r)
	require.NoError(t, err)
}

func TestRevokedTokenEnrolsNobody(t *testing.T) {
	t.Parallel()
	s := setup(t)
	token := newToken(t, s, "")
	require.NoError(t, s.RevokeEnrollmentToken(t.Context(), token.ID, operator))
	require.NoError(t, s.RevokeEnrollmentToken(t.Context(), token.ID, operator))
	require.ErrorIs(t, s.RevokeEnrollmentToken(t.Context(), "nobody", operator), authsvc.ErrNoEnrollmentToken)
	_, err := s.Register(t.Context(), registration(token, "db1"))
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused)
	found, total, err := s.ListEnrollmentTokens(t.Context(), page(10))
	require.NoError(t, err)
	require.Equal(t, 1, total)
	require.Equal(t, "revoked", found[0].Status(now))
}

func TestLostEnrolmentAnswerIsGivenAgainToTheSameKeyOnly(t *testing.T) {
	t.Parallel()
	s := setup(t)
	token := newToken(t, s, "")
	r := registration(token, "db1")
	_, err := s.Register(t.Context(), r)
	require.NoError(t, err)
	repeat := r
	repeat.CollectorID = uuid.New()
	done, err := s.RepeatedRegistration(t.Context(), repeat)
	require.NoError(t, err)
	require.Equal(t, r.Certificate.DER, done.DER)
	require.Equal(t, recordOf(t, s, r.CollectorID), done.Record)
	for what, spoil := range map[string]func(*authsvc.Registration){
		"another key":    func(r *authsvc.Registration) { r.Certificate.KeyHash[0] ^= 1 },
		"another name":   func(r *authsvc.Registration) { r.Name = "db2" },
		"another secret": func(r *authsvc.Registration) { r.TokenHash[0] ^= 1 },
		"too late":       func(r *authsvc.Registration) { r.At = token.ExpiresAt },
	} {
		spoilt := repeat
		spoil(&spoilt)
		_, err := s.RepeatedRegistration(t.Context(), spoilt)
		require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, what)
	}
	require.NoError(t, s.MarkUsed(t.Context(), map[string]time.Time{r.Certificate.Thumbprint: now}))
	_, err = s.RepeatedRegistration(t.Context(), repeat)
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, "the answer arrived")
}

// The database came back from a backup of before the renewal; verifiers did not.
func TestCertificateThatOnlyVerifiersKnowIsTakenOver(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := enrolled(t, s, "db1")
	newer := newCertificate()
	known := identity.Collector{ID: r.CollectorID, Status: identity.Registered, Generation: 5, Thumbprint: newer.Thumbprint}
	renewal := authsvc.Renewal{CollectorID: r.CollectorID, Presented: newer, At: now, Certificate: newCertificate()}
	_, err := s.Renew(t.Context(), renewal)
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown, "verifiers do not know it either")
	renewal.Known = known
	done, err := s.Renew(t.Context(), renewal)
	require.NoError(t, err)
	require.Equal(t, 6, done.Collector.Generation)
	require.Equal(t, renewal.Certificate.Thumbprint, recordOf(t, s, r.CollectorID).Thumbprint)

	// Revoked here, it is not taken over as something new.
	other := enrolled(t, s, "db2")
	lockUp(t, s, other)
	change(t, s, other.CollectorID, authsvc.Unlock)
	_, err = s.Renew(t.Context(), authsvc.Renewal{CollectorID: other.CollectorID, Presented: other.Certificate, At: now, Certificate: newCertificate(),
		Known: identity.Collector{ID: other.CollectorID, Generation: 9, Thumbprint: other.Certificate.Thumbprint}})
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown)
}

func TestStatusFollowsTheLedger(t *testing.T) {
	t.Parallel()
	url := testdb.New(t)
	s, err := pgstore.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	r := enrolled(t, s, "db1")
	quiet := enrolled(t, s, "db2")
	status := func() identity.Status {
		found, _, err := s.ListCollectors(t.Context(), authsvc.CollectorQuery{Page: page(1), ID: r.CollectorID, ActiveWithin: 3 * time.Minute})
		require.NoError(t, err)
		return found[0].Status
	}
	require.Equal(t, identity.Registered, status())

	// Stored now, although the sender's clock is a day behind.
	_, err = conn.Exec(t.Context(), `insert into ingest.batch (sent_at, collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections)
		values (now() - interval '1 day', $1, gen_random_uuid(), 1, 'x', '', 0, '[]')`, r.CollectorID)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `insert into metrics.server (server_id, collector_id, name, first_seen, last_seen)
		values (gen_random_uuid(), $1, 'db1', now() - interval '1 day', now() - interval '1 day')`, r.CollectorID)
	require.NoError(t, err)
	require.Equal(t, identity.Active, status())

	_, err = conn.Exec(t.Context(), `update ingest.batch set stored_at = now() - interval '4 minutes'`)
	require.NoError(t, err)
	require.Equal(t, identity.Offline, status())

	change(t, s, r.CollectorID, authsvc.Disable)
	require.Equal(t, identity.Disabled, status())
	found, total, err := s.ListCollectors(t.Context(), authsvc.CollectorQuery{Page: page(10), Status: identity.Registered, ActiveWithin: time.Minute})
	require.NoError(t, err)
	require.Equal(t, 1, total)
	require.Equal(t, quiet.CollectorID, found[0].ID)
	require.True(t, found[0].LastSeen.IsZero())
}

func TestEveryActOfAnOperatorIsAudited(t *testing.T) {
	t.Parallel()
	url := testdb.New(t)
	s, err := pgstore.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	r := enrolled(t, s, "db1")
	for _, o := range []authsvc.Operation{authsvc.Disable, authsvc.Enable, authsvc.Delete} {
		change(t, s, r.CollectorID, o)
	}
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	var actions []string
	require.NoError(t, conn.QueryRow(t.Context(), `select array_agg(action order by id) from identity.audit
		where actor = 'user:x' and source_ip = '192.0.2.9' and resource_id = $1`, r.CollectorID.String()).Scan(&actions))
	require.Equal(t, []string{"collector.disable", "collector.enable", "collector.delete"}, actions)
}
