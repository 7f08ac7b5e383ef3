package service_test

import (
	"encoding/json"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/policy/pulled"
	"pganalytics/pkg/service"
)

// desk is the operators' desk, with a collector that is enrolled.
type desk struct {
	*service.Configs
	*line
	collector service.ConfigTarget
	fleet     service.ConfigTarget
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{line: newLine(t, lineConfig{})}
	d.enrolled("registered", "", time.Hour)
	d.open()
	conn, err := pgx.Connect(t.Context(), d.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	var id, name string
	require.NoError(t, conn.QueryRow(t.Context(), "select id, name from identity.collector").Scan(&id, &name))
	d.collector, err = d.Target(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, id, d.collector.ID.String())
	d.fleet, err = d.Target(t.Context(), "")
	require.NoError(t, err)
	return d
}

func (d *desk) open() {
	d.t.Helper()
	configs, end, err := d.installation().Configs(d.t.Context(), io.Discard)
	require.NoError(d.t, err)
	d.t.Cleanup(end)
	d.Configs = configs
}

func (d *desk) set(target service.ConfigTarget, document string) pulled.Version {
	d.t.Helper()
	v, err := d.Set(d.t.Context(), change(target, document))
	require.NoError(d.t, err)
	return v
}

func change(target service.ConfigTarget, document string) service.SetConfig {
	return service.SetConfig{Target: target, File: "f.yaml", Document: document, Author: "alice", Comment: "because", By: "cli:test"}
}

func (d *desk) get(target service.ConfigTarget, number int64) service.ConfigView {
	d.t.Helper()
	view, err := d.Get(d.t.Context(), target, number)
	require.NoError(d.t, err)
	return view
}

func TestTheDefaultCountsWhereACollectorHasNoConfiguration(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	require.Zero(t, d.get(d.collector, 0).Version.Number)
	d.set(d.fleet, "preset: minimal")
	require.Equal(t, "preset: minimal", d.get(d.collector, 0).Version.Document)
	d.set(d.collector, "preset: standard")
	require.Equal(t, "preset: standard", d.get(d.collector, 0).Version.Document)
	d.set(d.fleet, "preset: exhaustive")
	require.EqualValues(t, 2, d.get(d.collector, 0).Version.Number)
	require.EqualValues(t, 2, d.get(d.collector, 0).Published)
	require.Equal(t, "preset: minimal", d.get(d.collector, 1).Version.Document, "a former one of the default")

	v := d.set(d.collector, "")
	require.EqualValues(t, 4, v.Number)
	view := d.get(d.collector, 0)
	require.Equal(t, "preset: exhaustive", view.Version.Document)
	require.EqualValues(t, 4, view.Published, "the number rises although the default is older")
	history, err := d.History(t.Context(), d.collector, 10)
	require.NoError(t, err)
	require.Len(t, history, 2)
}

func TestAConfigurationWithFaultsIsRefusedWithAllOfThem(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	_, err := d.Set(t.Context(), change(d.collector, "preset: most\nhost: x\nfamilies: {pg_nothing: on}"))
	for _, want := range []string{"f.yaml:1: ", `f.yaml:2: the document has no key "host"`, `f.yaml:3: no family "pg_nothing"`} {
		require.ErrorContains(t, err, want)
	}
	unsaid := change(d.collector, "{}")
	unsaid.Comment = " "
	_, err = d.Set(t.Context(), unsaid)
	require.ErrorContains(t, err, "why")
	require.Zero(t, d.number("select count(*) from identity.collector_config"))
	require.Zero(t, d.get(d.collector, 0).Published)
}

func TestOfTwoOperatorsWhoExpectTheSameOneIsTold(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	first := d.set(d.collector, "{}")
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() {
			c := change(d.collector, "preset: minimal")
			c.Expect = &first.Number
			_, errs[i] = d.Set(t.Context(), c)
		})
	}
	wg.Wait()
	if errs[0] != nil {
		errs[0], errs[1] = errs[1], errs[0]
	}
	require.NoError(t, errs[0])
	require.ErrorContains(t, errs[1], "somebody was faster")
}

// The database was restored from before versions that collectors have.
func TestANewVersionExceedsThoseThatARestoredDatabaseLacks(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	value, err := json.Marshal(pulled.Record{Version: 40, Document: "preset: minimal"})
	require.NoError(t, err)
	require.NoError(t, d.bus.ConfigBucket().Put(t.Context(), "document."+d.collector.ID.String(), value))
	require.EqualValues(t, 41, d.set(d.collector, "{}").Number)
	there, err := pulled.Published(t.Context(), d.bus.ConfigBucket(), d.collector.ID)
	require.NoError(t, err)
	require.Equal(t, pulled.Record{Version: 41, Document: "{}"}, there)
}

func TestWhatACollectorSaysIsShown(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	require.Nil(t, d.get(d.collector, 0).State)
	snapshot := pulled.NewSnapshot(d.bus.ConfigBucket())
	require.NoError(t, snapshot.Report(t.Context(), d.collector.ID, pulled.State{Applied: 1, Refused: 2, Detail: "why"}))
	require.Equal(t, "why", d.get(d.collector, 0).State.Detail)
	_, err := d.Target(t.Context(), uuid.NewString())
	require.ErrorContains(t, err, "there is no collector")
}
