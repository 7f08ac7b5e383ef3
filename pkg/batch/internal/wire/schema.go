package wire

import "google.golang.org/protobuf/encoding/protowire"

// Field numbers of schemas/batch.proto that a batch and a push in the native
// form have in common.
const (
	Epoch    protowire.Number = 5
	Sequence protowire.Number = 6
	Previous protowire.Number = 7
	Refused  protowire.Number = 8

	MarkEpoch    protowire.Number = 1
	MarkSequence protowire.Number = 2

	LabelName  protowire.Number = 1
	LabelValue protowire.Number = 2

	SectionFamily   protowire.Number = 1
	SectionServer   protowire.Number = 2
	SectionServerID protowire.Number = 3
	SectionColumns  protowire.Number = 4
	SectionRows     protowire.Number = 5
	SectionMinTime  protowire.Number = 6
	SectionMaxTime  protowire.Number = 7
	SectionTuples   protowire.Number = 8
	SectionPacked   protowire.Number = 9

	ColumnName protowire.Number = 1
	ColumnType protowire.Number = 2
)
