package batch

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
)

// What a batch's envelope and a push in the native form have in common. Field
// numbers are those of schemas/batch.proto.
const (
	fieldEpoch    protowire.Number = 5
	fieldSequence protowire.Number = 6
	fieldPrevious protowire.Number = 7
	fieldRefused  protowire.Number = 8

	markEpoch    protowire.Number = 1
	markSequence protowire.Number = 2

	labelName  protowire.Number = 1
	labelValue protowire.Number = 2

	sectionFamily   protowire.Number = 1
	sectionServer   protowire.Number = 2
	sectionServerID protowire.Number = 3
	sectionColumns  protowire.Number = 4
	sectionRows     protowire.Number = 5
	sectionMinTime  protowire.Number = 6
	sectionMaxTime  protowire.Number = 7
	sectionTuples   protowire.Number = 8
	sectionPacked   protowire.Number = 9

	columnName protowire.Number = 1
	columnType protowire.Number = 2
)

// AppendNumbering appends a sender's numbering as the fields epoch, sequence,
// previous and refused, which have the same numbers in both messages.
func AppendNumbering(dst []byte, epoch uuid.UUID, sequence uint64, previous Mark, refused []uint64) []byte {
	if epoch != uuid.Nil {
		dst = wire.AppendBytes(dst, fieldEpoch, epoch[:])
	}
	dst = wire.AppendUint(dst, fieldSequence, sequence)
	if previous != (Mark{}) {
		dst = wire.AppendNested(dst, fieldPrevious, 0, func(dst []byte) []byte {
			dst = wire.AppendBytes(dst, markEpoch, previous.Epoch[:])
			return wire.AppendUint(dst, markSequence, previous.Sequence)
		})
	}
	if len(refused) > 0 {
		dst = wire.AppendNested(dst, fieldRefused, 0, func(dst []byte) []byte {
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
			dst = wire.AppendBytes(dst, labelName, l.Name)
			return wire.AppendBytes(dst, labelValue, l.Value)
		})
	}
	return dst
}

// AppendSection appends a section, which must have been expanded, as a field of
// that number.
func AppendSection(dst []byte, field protowire.Number, s *Section) []byte {
	dst = wire.AppendNested(dst, field, wire.SizeBytes(sectionTuples, len(s.Tuples)), s.appendHead)
	return wire.AppendBytes(dst, sectionTuples, s.Tuples)
}

// SizeSection returns the size of what AppendSection appends.
func SizeSection(field protowire.Number, s *Section) int {
	head := len(s.appendHead(make([]byte, 0, 1<<10))) // enough for most, so on the stack
	return protowire.SizeTag(field) + protowire.SizeBytes(head+wire.SizeBytes(sectionTuples, len(s.Tuples)))
}

// appendHead appends all fields of a section but its rows.
func (s *Section) appendHead(dst []byte) []byte {
	dst = wire.AppendBytes(dst, sectionFamily, s.Family)
	dst = wire.AppendBytes(dst, sectionServer, s.Server)
	dst = wire.AppendBytes(dst, sectionServerID, s.ServerID[:])
	for _, c := range s.Columns {
		dst = wire.AppendNested(dst, sectionColumns, 0, func(dst []byte) []byte {
			dst = wire.AppendBytes(dst, columnName, c.Name)
			return wire.AppendUint(dst, columnType, uint64(c.Type))
		})
	}
	dst = wire.AppendUint(dst, sectionRows, uint64(s.Rows))
	dst = wire.AppendUint(dst, sectionMinTime, uint64(s.MinTime.UnixMicro()))
	return wire.AppendUint(dst, sectionMaxTime, uint64(s.MaxTime.UnixMicro()))
}
