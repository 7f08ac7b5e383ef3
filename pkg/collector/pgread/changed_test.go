package pgread

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

const changing = `
name: changing
description: Rows that are sent on change.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [k]
changed_by: [v]
columns:
  - {name: k, type: text, help: x}
  - {name: v, type: bigint, kind: counter, unit: things, help: x}
`

// pairs makes the result of a sample of keys and values, whose rows also tell
// the number of the sample.
func pairs(t *filter, round int, kv ...string) *result {
	res := &result{}
	for i := 0; i < len(kv); i += 2 {
		begin := len(res.tuples)
		res.tuples = batch.AppendText(res.tuples, kv[i])
		value := len(res.tuples)
		res.tuples = batch.AppendText(res.tuples, kv[i+1])
		end := len(res.tuples)
		res.tuples = batch.AppendText(res.tuples, fmt.Sprintf("@%d", round))
		res.ids = append(res.ids, t.identify(res.tuples, []int{begin, value, end}))
		res.ends = append(res.ends, len(res.tuples))
	}
	return res
}

// passed has pass decide and returns its rows as texts: key=value@sample.
func passed(t *testing.T, f *filter, res *result, at time.Time) (now, before []string, beforeAt time.Time) {
	t.Helper()
	current, last, err := f.pass(res, at)
	require.NoError(t, err)
	return texts(t, current), texts(t, last), last.at
}

func texts(t *testing.T, p part) []string {
	t.Helper()
	var s []string
	var fields []string
	for rest := p.tuples; len(rest) > 0; {
		n := 4 + binary.BigEndian.Uint32(rest)
		fields, rest = append(fields, string(rest[4:n])), rest[n:]
		if len(fields) == 3 {
			s = append(s, fields[0]+"="+fields[1]+fields[2])
			fields = nil
		}
	}
	require.Len(t, s, p.rows)
	return s
}

func TestOnlyChangedRowsAreSentWithTheRowBefore(t *testing.T) {
	t.Parallel()
	f, _ := load(t, changing+"queries:\n  - {min_version: 13, sql: \"select 1\"}\n").Family("changing")
	keep := newFilter(f)
	at := func(n int) time.Time { return time.Date(2024, 1, 1, 0, n, 0, 0, time.UTC) }
	for n, step := range []struct {
		kv          []string
		now, before []string
	}{
		{[]string{"a", "1", "b", "1"}, []string{"a=1@0", "b=1@0"}, nil}, // new
		{[]string{"a", "1", "b", "1"}, nil, nil},
		{[]string{"a", "1", "b", "1"}, nil, nil},
		{[]string{"a", "2", "b", "1"}, []string{"a=2@3"}, []string{"a=1@2"}}, // with the one before, not the one sent first
		{[]string{"a", "3", "b", "1"}, []string{"a=3@4"}, nil},               // the one before was sent
		{[]string{"a", "3"}, nil, nil},
		{[]string{"a", "3", "b", "1"}, []string{"b=1@6"}, nil}, // came back
	} {
		now, before, beforeAt := passed(t, keep, pairs(keep, n, step.kv...), at(n))
		require.Equal(t, step.now, now, "sample %d", n)
		require.Equal(t, step.before, before, "sample %d", n)
		if before != nil {
			require.Equal(t, at(n-1), beforeAt)
		}
	}
	// An unchanged row is sent within the hour.
	sent := 0
	for n := 7; n < 67; n++ {
		now, _, _ := passed(t, keep, pairs(keep, n, "a", "3"), at(n))
		sent += len(now)
	}
	require.Equal(t, 1, sent)
}

func TestTextsOfADimensionAreSentOnceADay(t *testing.T) {
	t.Parallel()
	f, _ := load(t, `
name: texts
description: Texts.
kind: dimension
scope: instance
interval: 300s
retention: 90d
key: [k]
columns:
  - {name: k, type: text, help: x}
  - {name: v, type: text, kind: info, help: x}
queries:
  - {min_version: 13, sql: "select 1"}
`).Family("texts")
	keep := newFilter(f)
	day := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	now, _, _ := passed(t, keep, pairs(keep, 0, "a", "x"), day)
	require.Len(t, now, 1)
	now, before, _ := passed(t, keep, pairs(keep, 1, "a", "x", "b", "y"), day.Add(time.Hour))
	require.Equal(t, []string{"b=y@1"}, now)
	require.Empty(t, before)
	now, _, _ = passed(t, keep, pairs(keep, 2, "a", "x", "b", "y"), day.Add(24*time.Hour))
	require.Equal(t, []string{"a=x@2", "b=y@2"}[:1], now[:1])
	now, _, _ = passed(t, keep, pairs(keep, 3, "a", "changed"), day.Add(25*time.Hour))
	require.Equal(t, []string{"a=changed@3"}, now)
}

func TestUnchangedRowsAreSentAgainAfterTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	f, _ := load(t, changing+"queries:\n  - {min_version: 13, sql: \"select 1\"}\n").Family("changing")
	keep := newFilter(f)
	ahead := time.Date(2034, 1, 1, 0, 0, 0, 0, time.UTC)
	passed(t, keep, pairs(keep, 0, "a", "1"), ahead)
	now, _, _ := passed(t, keep, pairs(keep, 1, "a", "1"), ahead.AddDate(-10, 0, 0))
	require.Equal(t, []string{"a=1@1"}, now)
	now, _, _ = passed(t, keep, pairs(keep, 2, "a", "1"), ahead.AddDate(-10, 0, 0).Add(time.Minute))
	require.Empty(t, now)
}
