package repair

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

const family = `
name: probe
description: Rows of the tests.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [name]
columns:
  - {name: name, type: text, kind: label}
  - {name: v, type: bigint, kind: gauge}
`

// One row of the section has a fault, and it alone is told.
func TestEveryFaultOfASectionIsToldWithItsPlace(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Load(fstest.MapFS{"probe.yaml": {Data: []byte(family)}})
	require.NoError(t, err)
	server, at := uuid.New(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	type row struct {
		server uuid.UUID
		at     time.Time
		name   func([]byte) []byte
	}
	good := row{server, at, func(d []byte) []byte { return batch.AppendText(d, "a") }}
	section := func(rows ...row) *batch.Section {
		s := &batch.Section{
			Family: "probe", Server: "db1", ServerID: server, Rows: len(rows), MinTime: at, MaxTime: at,
			Columns: []batch.Column{{Name: "name", Type: catalogue.Text}, {Name: "v", Type: catalogue.BigInt}},
		}
		for _, r := range rows {
			s.Tuples = batch.AppendInt64(r.name(batch.AppendTuple(s.Tuples, batch.LeadFields+2, r.at, r.server)), 1)
		}
		return s
	}
	with := func(change func(*row)) *batch.Section {
		bad := good
		change(&bad)
		return section(good, bad, good)
	}
	unknown, moved, cut := section(good), section(good), section(good, good)
	unknown.Family = "from_tomorrow"
	moved.Columns = []batch.Column{{Name: "other", Type: catalogue.Text}, {Name: "v", Type: catalogue.Integer}}
	moved.Rows, moved.Tuples = 0, nil
	cut.Tuples = cut.Tuples[:len(cut.Tuples)-1]
	for name, c := range map[string]struct {
		section *batch.Section
		want    []Fault
	}{
		"none": {section(good, good), nil},
		"null key": {with(func(r *row) { r.name = batch.AppendNull }),
			[]Fault{{4, 1, "name", "is NULL and must not be"}}},
		"long key": {with(func(r *row) { r.name = func(d []byte) []byte { return batch.AppendText(d, strings.Repeat("x", 2001)) } }),
			[]Fault{{4, 1, "name", "has 2001 bytes, a key at most 2000"}}},
		"no text": {with(func(r *row) { r.name = func(d []byte) []byte { return batch.AppendText(d, "\xff") } }),
			[]Fault{{4, 1, "name", "is not UTF-8 at byte 0"}}},
		"other server": {with(func(r *row) { r.server = uuid.New() }),
			[]Fault{{4, 1, "server_id", "is not that of the section"}}},
		"earlier": {with(func(r *row) { r.at = at.Add(-time.Microsecond) }),
			[]Fault{{4, 1, "time", "lies outside of what the section says"}}},
		"later": {with(func(r *row) { r.at = at.Add(time.Microsecond) }),
			[]Fault{{4, 1, "time", "lies outside of what the section says"}}},
		"unknown family": {unknown, []Fault{{4, -1, "", `family "from_tomorrow" is unknown here`}}},
		"other columns":  {moved, []Fault{{4, -1, "other", "is unknown to the family here"}, {4, -1, "v", "is bigint here, not integer"}}},
		"cut off":        {cut, []Fault{{4, -1, "", "row 1: malformed tuples: field 3 claims 8 bytes of 7"}}},
	} {
		var s Shown
		s.section(4, c.section, cat, 10)
		require.Equal(t, c.want, s.Faults, name)
		require.Len(t, s.Sections, 1, name)
	}
}

func TestFaultsAreBoundedAndNoRowToShowIsLost(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Load(fstest.MapFS{"probe.yaml": {Data: []byte(family)}})
	require.NoError(t, err)
	server, at := uuid.New(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	section := &batch.Section{
		Family: "probe", ServerID: server, Rows: 10 * maxFaults, MinTime: at, MaxTime: at,
		Columns: []batch.Column{{Name: "name", Type: catalogue.Text}},
	}
	for range section.Rows {
		section.Tuples = batch.AppendText(batch.AppendTuple(section.Tuples, batch.LeadFields+1, at, server), "\x00")
	}
	var s Shown
	s.section(0, section, cat, 3*maxFaults)
	require.Len(t, s.Faults, maxFaults)
	require.Len(t, s.Sections[0].Values, 3*maxFaults)
}
