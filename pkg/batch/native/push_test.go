package native_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/catalogue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pushes draws pushes with and without every field, lists of none and of many.
func pushes() *rapid.Generator[*native.Push] {
	id := rapid.Custom(func(t *rapid.T) uuid.UUID {
		if rapid.Bool().Draw(t, "zero") {
			return uuid.Nil
		}
		return uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	})
	text := rapid.OneOf(rapid.String(), rapid.StringN(120, 200, -1)) // lengths of one byte and of two
	micros := rapid.Custom(func(t *rapid.T) time.Time { return time.UnixMicro(rapid.Int64().Draw(t, "time")).UTC() })
	label := rapid.Custom(func(t *rapid.T) batch.Label {
		return batch.Label{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")}
	})
	column := rapid.Custom(func(t *rapid.T) batch.Column {
		return batch.Column{Name: text.Draw(t, "column"), Type: catalogue.Type(rapid.IntRange(1, 9).Draw(t, "type"))}
	})
	section := rapid.Custom(func(t *rapid.T) batch.Section {
		return batch.Section{
			Family: text.Draw(t, "family"), Server: text.Draw(t, "server"), ServerID: id.Draw(t, "server id"),
			Columns: rapid.SliceOfN(column, 0, 20).Draw(t, "columns"),
			Rows:    rapid.IntRange(0, 1<<40).Draw(t, "rows"), MinTime: micros.Draw(t, "min"), MaxTime: micros.Draw(t, "max"),
			Tuples: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "tuples"),
		}
	})
	return rapid.Custom(func(t *rapid.T) *native.Push {
		return &native.Push{
			CollectorID: id.Draw(t, "collector"), Hostname: text.Draw(t, "host"), Version: text.Draw(t, "version"), BatchID: id.Draw(t, "batch"),
			Epoch: id.Draw(t, "epoch"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			Previous: batch.Mark{Epoch: id.Draw(t, "previous"), Sequence: rapid.Uint64().Draw(t, "last")},
			Refused:  rapid.SliceOfN(rapid.Uint64(), 0, 20).Draw(t, "refused"),
			Labels:   rapid.SliceOfN(label, 0, 4).Draw(t, "labels"),
			Sections: rapid.SliceOfN(section, 0, 4).Draw(t, "sections"),
		}
	})
}

// message is what the generated code makes of a push, field by field.
func message(p *native.Push) *batchpb.PushRequest {
	m := &batchpb.PushRequest{
		CollectorId: p.CollectorID[:], Hostname: p.Hostname, Version: p.Version, BatchId: p.BatchID[:],
		Sequence: p.Sequence, Refused: p.Refused, SectionCount: uint32(len(p.Sections)),
	}
	if p.Epoch != uuid.Nil {
		m.Epoch = p.Epoch[:]
	}
	if p.Previous != (batch.Mark{}) {
		m.Previous = &batchpb.Mark{Epoch: p.Previous.Epoch[:], Sequence: p.Previous.Sequence}
	}
	for _, l := range p.Labels {
		m.Labels = append(m.Labels, &batchpb.Label{Name: l.Name, Value: l.Value})
	}
	for _, s := range p.Sections {
		section := &batchpb.Section{
			Family: s.Family, Server: s.Server, ServerId: s.ServerID[:], Rows: uint64(s.Rows),
			MinTimeUs: s.MinTime.UnixMicro(), MaxTimeUs: s.MaxTime.UnixMicro(), Tuples: s.Tuples,
		}
		for _, c := range s.Columns {
			section.Columns = append(section.Columns, &batchpb.Column{Name: c.Name, Type: batchpb.Type(c.Type)})
		}
		m.Sections = append(m.Sections, section)
	}
	return m
}

func TestAPushIsWrittenAsTheGeneratedCodeWritesIt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := pushes().Draw(t, "push")
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(message(p))
		require.NoError(t, err)
		before := []byte("before")
		require.Equal(t, append(before, want...), p.Append(before))
		require.Equal(t, len(want), p.Size())
	})
}
