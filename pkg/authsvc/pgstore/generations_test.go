package pgstore_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/identity"
)

// held is a certificate in the model.
type held struct {
	authsvc.Certificate
	generation, predecessor int
	overlap, used, revoked  bool
}

// generations is the model of one collector: what authsvc.Renewal and
// authsvc.Operation say, in the plainest form.
type generations struct {
	store  *pgstore.Store
	id     uuid.UUID
	name   string
	certs  []*held // in the order of issue; the last is the newest
	status identity.Status
	unlock *authsvc.EnrollmentToken
}

func (m *generations) newest() *held { return m.certs[len(m.certs)-1] }

func (m *generations) renew(t *rapid.T) {
	presented := rapid.SampledFrom(m.certs).Draw(t, "presented")
	asked := newCertificate()
	if last := m.newest(); rapid.Bool().Draw(t, "same key as the newest") {
		asked.KeyHash = last.KeyHash
	}
	done, err := m.store.Renew(t.Context(), authsvc.Renewal{
		CollectorID: m.id, Presented: presented.Certificate, At: now, Certificate: asked,
	})
	last := m.newest()
	lost := last.predecessor == presented.generation && !last.used
	switch {
	case m.status == identity.Locked:
		require.ErrorIs(t, err, authsvc.ErrCollectorLocked)
	case m.status == identity.Disabled:
		require.ErrorIs(t, err, authsvc.ErrCollectorDisabled)
	case presented.revoked:
		require.ErrorIs(t, err, authsvc.ErrCertificateUnknown)
	case presented == last, lost && last.KeyHash != asked.KeyHash && !last.overlap:
		require.NoError(t, err)
		require.Equal(t, last.generation+1, done.Collector.Generation)
		require.Equal(t, asked.DER, done.DER)
		presented.used = true
		m.certs = append(m.certs, &held{
			Certificate: asked, generation: last.generation + 1, predecessor: presented.generation, overlap: presented != last,
		})
	case lost && last.KeyHash == asked.KeyHash:
		require.NoError(t, err)
		require.True(t, done.Repeated)
		require.Equal(t, last.DER, done.DER)
	default:
		require.NoError(t, err)
		require.Equal(t, identity.Locked, done.Collector.Status)
		require.Empty(t, done.DER)
		m.status = identity.Locked
	}
}

func (m *generations) use(t *rapid.T) {
	c := rapid.SampledFrom(m.certs).Draw(t, "used")
	require.NoError(t, m.store.MarkUsed(t.Context(), map[string]time.Time{c.Thumbprint: now}))
	c.used = true
}

func (m *generations) operate(t *rapid.T) {
	operation := rapid.SampledFrom([]authsvc.Operation{authsvc.Disable, authsvc.Enable, authsvc.Unlock}).Draw(t, "operation")
	c := authsvc.Change{CollectorID: m.id, Operation: operation, By: operator}
	if operation == authsvc.Unlock {
		made := token("", now)
		made.CollectorID = m.id
		c.Token = &made
	}
	done, err := m.store.ChangeCollector(t.Context(), c)
	if (operation == authsvc.Unlock) != (m.status == identity.Locked) {
		require.ErrorIs(t, err, authsvc.ErrStatusConflict)
		return
	}
	require.NoError(t, err)
	m.status = identity.Registered
	switch operation {
	case authsvc.Disable:
		m.status = identity.Disabled
	case authsvc.Unlock:
		m.unlock = c.Token
		for _, held := range m.certs {
			held.revoked = true
		}
	}
	require.Equal(t, m.status, done.Record.Status)
}

func (m *generations) enrolAgain(t *rapid.T) {
	if m.unlock == nil {
		t.Skip("no token")
	}
	r := registration(*m.unlock, m.name)
	r.CollectorID, r.Again = m.id, true
	done, err := m.store.Register(t.Context(), r)
	switch m.status {
	case identity.Disabled:
		require.ErrorIs(t, err, authsvc.ErrCollectorDisabled)
		return
	case identity.Locked: // by what? every certificate is revoked
		require.ErrorIs(t, err, authsvc.ErrCollectorLocked)
		return
	}
	require.NoError(t, err)
	m.unlock = nil
	for _, held := range m.certs {
		held.revoked = true
	}
	m.certs = append(m.certs, &held{Certificate: r.Certificate, generation: done.Record.Generation})
}

func (m *generations) check(t *rapid.T) {
	usable := slices.DeleteFunc(slices.Clone(m.certs), func(h *held) bool { return h.revoked })
	collectors, revocations, err := m.store.Directory(t.Context(), now)
	require.NoError(t, err)
	revoked := 0
	for _, r := range revocations {
		if r.CollectorID == m.id {
			revoked++
		}
	}
	require.Equal(t, len(m.certs)-len(usable), revoked)
	i := slices.IndexFunc(collectors, func(c identity.Collector) bool { return c.ID == m.id })
	require.Equal(t, m.status, collectors[i].Status)
	require.Equal(t, m.newest().generation, collectors[i].Generation)
	require.Equal(t, m.newest().Thumbprint, collectors[i].Thumbprint)
}

func TestGenerationsFollowTheModel(t *testing.T) {
	t.Parallel()
	s := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := enrolled(t, s, uuid.NewString())
		m := &generations{
			store: s, id: r.CollectorID, name: r.Name, status: identity.Registered,
			certs: []*held{{Certificate: r.Certificate, generation: 1}},
		}
		rt.Repeat(map[string]func(*rapid.T){
			"renew": m.renew, "use": m.use, "operate": m.operate, "enrol again": m.enrolAgain, "": m.check,
		})
	})
}
