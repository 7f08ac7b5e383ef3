package batch

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
)

// These write what a batch's envelope and a push in the native form have in
// common.

// AppendNumbering appends a sender's numbering as the fields epoch, sequence,
// previous and refused, which have the same numbers in both messages.
func AppendNumbering(dst []byte, epoch uuid.UUID, sequence uint64, previous Mark, refused []uint64) []byte {
	if epoch != uuid.Nil {
		dst = wire.AppendBytes(dst, wire.Epoch, epoch[:])
	}
	dst = wire.AppendUint(dst, wire.Sequence, sequence)
	if previous != (Mark{}) {
		dst = wire.AppendNested(dst, wire.Previous, 0, func(dst []byte) []byte {
			dst = wire.AppendBytes(dst, wire.MarkEpoch, previous.Epoch[:])
			return wire.AppendUint(dst, wire.MarkSequence, previous.Sequence)
		})
	}
	if len(refused) > 0 {
		dst = wire.AppendNested(dst, wire.Refused, 0, func(dst []byte) []byte {
			for _, n := range refused {
				dst = protowire.AppendVarint(dst, n)
			}
			return dst
		})
	}
	return dst
}

// AppendLabels appends labels as a repeated field of that number.
func AppendLabels(dst []byte, field protowire.Number, labels []Label) []byte {
	for _, l := range labels {
		dst = wire.AppendNested(dst, field, 0, func(dst []byte) []byte {
			dst = wire.AppendBytes(dst, wire.LabelName, l.Name)
			return wire.AppendBytes(dst, wire.LabelValue, l.Value)
		})
	}
	return dst
}

// AppendSection appends a section, which must have been expanded, as a field of
// that number.
func AppendSection(dst []byte, field protowire.Number, s *Section) []byte {
	dst = wire.AppendNested(dst, field, wire.SizeBytes(wire.SectionTuples, len(s.Tuples)), s.appendHead)
	return wire.AppendBytes(dst, wire.SectionTuples, s.Tuples)
}

// SizeSection returns the size of what AppendSection appends.
func SizeSection(field protowire.Number, s *Section) int {
	head := len(s.appendHead(make([]byte, 0, 1<<10))) // enough for most, so on the stack
	return protowire.SizeTag(field) + protowire.SizeBytes(head+wire.SizeBytes(wire.SectionTuples, len(s.Tuples)))
}

// appendHead appends all fields of a section but its rows.
func (s *Section) appendHead(dst []byte) []byte {
	dst = wire.AppendBytes(dst, wire.SectionFamily, s.Family)
	dst = wire.AppendBytes(dst, wire.SectionServer, s.Server)
	dst = wire.AppendBytes(dst, wire.SectionServerID, s.ServerID[:])
	for _, c := range s.Columns {
		dst = wire.AppendNested(dst, wire.SectionColumns, 0, func(dst []byte) []byte {
			dst = wire.AppendBytes(dst, wire.ColumnName, c.Name)
			return wire.AppendUint(dst, wire.ColumnType, uint64(c.Type))
		})
	}
	dst = wire.AppendUint(dst, wire.SectionRows, uint64(s.Rows))
	dst = wire.AppendUint(dst, wire.SectionMinTime, uint64(s.MinTime.UnixMicro()))
	return wire.AppendUint(dst, wire.SectionMaxTime, uint64(s.MaxTime.UnixMicro()))
}
