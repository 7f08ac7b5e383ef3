package batch_test

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample returns a batch with something in every field.
func sample() *batch.Batch {
	collector := uuid.MustParse("6f1c2a34-0b1d-4c5e-8f70-112233445566")
	server := batch.ServerID(collector, "db1")
	at := time.Date(2026, 3, 4, 5, 6, 7, 890_123_000, time.UTC)
	tuples := batch.AppendTuple(nil, 4, at, server)
	tuples = batch.AppendText(tuples, "postgres")
	tuples = batch.AppendInt64(tuples, 42)
	b := &batch.Batch{
		CollectorID: collector,
		ID:          uuid.MustParse("019cb773-8140-7000-8000-000000000001"),
		SentAt:      at,
		Epoch:       uuid.MustParse("019cb773-8140-7000-8000-000000000002"),
		Sequence:    1,
		Previous:    batch.Mark{Epoch: uuid.MustParse("019cb773-8140-7000-8000-000000000003"), Sequence: 41},
		Refused:     []uint64{7, 9},
		Labels:      []batch.Label{{Name: "env", Value: "prod"}, {Name: "zone", Value: "a"}},
		Sections: []batch.Section{{
			Family:   "pg_stat_database",
			Server:   "db1",
			ServerID: server,
			Columns:  []batch.Column{{Name: "datname", Type: catalogue.Text}, {Name: "xact_commit", Type: catalogue.BigInt}},
			Rows:     1,
			MinTime:  at,
			MaxTime:  at,
			Tuples:   tuples,
		}},
		ReceivedAt:  at.Add(time.Second),
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	b.Seal()
	return b
}

func TestTheEnvelopeIsTheGoldenOne(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "envelope.hex")
	data, err := sample().Marshal()
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(hex.Dump(data)), 0o644))
	}
	golden, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(golden), hex.Dump(data), "messages that lie on streams must stay readable")
	back, err := batch.Unmarshal(data)
	require.NoError(t, err)
	require.Equal(t, sample(), back)
	require.True(t, back.Intact())
}

// mutate changes each leaf below v in turn, calls check and puts it back. Every
// field that the types ever get is met.
func mutate(v reflect.Value, path string, check func(path string)) {
	change := func(to reflect.Value) {
		before := reflect.New(v.Type()).Elem()
		before.Set(v)
		v.Set(to)
		check(path)
		v.Set(before)
	}
	if at, ok := v.Interface().(time.Time); ok {
		change(reflect.ValueOf(at.Add(time.Microsecond)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue // how the envelope had the tuples; of an expanded batch nothing
			}
			mutate(v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."), check)
		}
	case reflect.Slice:
		change(reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, 0), reflect.Append(v, reflect.Zero(v.Type().Elem()))))
		change(v.Slice(0, v.Len()-1))
		for i := range v.Len() {
			mutate(v.Index(i), path, check)
		}
	case reflect.Array:
		for i := range v.Len() {
			mutate(v.Index(i), path, check)
		}
	case reflect.String:
		change(reflect.ValueOf(v.String() + "x"))
	case reflect.Int:
		change(reflect.ValueOf(int(v.Int() + 1)))
	case reflect.Uint64:
		change(reflect.ValueOf(v.Uint() + 1))
	case reflect.Uint8:
		change(reflect.ValueOf(uint8(v.Uint()) + 1).Convert(v.Type()))
	default:
		panic("no mutation for " + path + " of type " + v.Type().String())
	}
}

func TestTheDigestCoversEverythingStored(t *testing.T) {
	t.Parallel()
	b := sample()
	unstored := map[string]bool{"Digest": true, "ReceivedAt": true, "TraceParent": true}
	// These follow from what is covered: the server's name and the tuples.
	derived := map[string]bool{"Sections.ServerID": true, "Sections.MinTime": true, "Sections.MaxTime": true}
	seen := map[string]bool{}
	mutate(reflect.ValueOf(b).Elem(), "", func(path string) {
		seen[path] = true
		switch {
		case derived[path]:
		case unstored[path] && path != "Digest":
			require.True(t, b.Intact(), "%s differs between two attempts and must not matter", path)
		default:
			require.False(t, b.Intact(), "a change of %s goes unnoticed", path)
		}
	})
	for path := range unstored {
		require.True(t, seen[path], path)
	}
	require.True(t, seen["Sections.Columns.Type"] && seen["Sections.Tuples"] && seen["Previous.Sequence"])
	require.True(t, b.Intact(), "the mutations were undone")
}

func TestTheDigestTellsApartWhatOnlyConcatenatesAlike(t *testing.T) {
	t.Parallel()
	text := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 2, -1)
	generate := rapid.Custom(func(t *rapid.T) *batch.Batch {
		b := &batch.Batch{Sequence: uint64(rapid.IntRange(0, 1).Draw(t, "sequence"))}
		b.Refused = rapid.SliceOfN(rapid.Uint64Range(0, 1), 0, 2).Draw(t, "refused")
		b.Labels = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) batch.Label {
			return batch.Label{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")}
		}), 0, 2).Draw(t, "labels")
		b.Sections = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) batch.Section {
			return batch.Section{
				Family: text.Draw(t, "family"), Server: text.Draw(t, "server"), Rows: rapid.IntRange(0, 1).Draw(t, "rows"),
				Columns: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) batch.Column {
					return batch.Column{Name: text.Draw(t, "column"), Type: catalogue.Type(rapid.IntRange(1, 2).Draw(t, "type"))}
				}), 0, 2).Draw(t, "columns"),
				Tuples: []byte(text.Draw(t, "tuples")),
			}
		}), 0, 2).Draw(t, "sections")
		b.Seal()
		return b
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := generate.Draw(t, "a"), generate.Draw(t, "b")
		same := a.Digest == b.Digest
		a.Digest, b.Digest = [32]byte{}, [32]byte{}
		require.Equal(t, reflect.DeepEqual(a, b), same)
	})
}

func TestTheDigestMarksWhereAFieldEnds(t *testing.T) {
	t.Parallel()
	for name, pair := range map[string][2]*batch.Batch{
		"label": {
			{Labels: []batch.Label{{Name: "ab", Value: ""}}},
			{Labels: []batch.Label{{Name: "a", Value: "b"}}},
		},
		"family and server": {
			{Sections: []batch.Section{{Family: "a", Server: "bc"}}},
			{Sections: []batch.Section{{Family: "ab", Server: "c"}}},
		},
		"refused numbers and labels": {
			{Refused: []uint64{1, 0}},
			{Labels: []batch.Label{{}}},
		},
		"tuples of two sections": {
			{Sections: []batch.Section{{Tuples: []byte("ab")}, {}}},
			{Sections: []batch.Section{{Tuples: []byte("a")}, {Tuples: []byte("b")}}},
		},
	} {
		pair[0].Seal()
		pair[1].Seal()
		require.NotEqual(t, pair[0].Digest, pair[1].Digest, name)
	}
}

func TestAMessageIDIsOfCollectorIDAndContent(t *testing.T) {
	t.Parallel()
	id := sample().MessageID()
	require.Len(t, id, 64)
	for name, change := range map[string]func(*batch.Batch){
		"collector": func(b *batch.Batch) { b.CollectorID[0]++ },
		"batch id":  func(b *batch.Batch) { b.ID[15]++ },
		"content":   func(b *batch.Batch) { b.Sections[0].Tuples[0]++; b.Seal() },
	} {
		b := sample()
		change(b)
		require.NotEqual(t, id, b.MessageID(), name)
	}
	again := sample()
	again.ReceivedAt, again.TraceParent = time.Now(), ""
	again.Seal()
	require.Equal(t, id, again.MessageID(), "a repeat is the same message")
}

func TestRowsAndBytesAreSummedOverSections(t *testing.T) {
	t.Parallel()
	b := sample()
	b.Sections = append(b.Sections, b.Sections[0])
	require.Equal(t, 2, b.Rows())
	require.Equal(t, 2*len(b.Sections[0].Tuples), b.TupleBytes())
}
