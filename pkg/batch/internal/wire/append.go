// Package wire writes and reads the messages of schemas/batch.proto field by
// field, without types of its own for them, so that a batch's tuples are never
// copied into one. What a field must be is for its callers to say.
package wire

import (
	"encoding/binary"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// As proto3 has it, a field that is zero or empty is not written.

// AppendUint appends a field of type varint.
func AppendUint(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

// AppendBytes appends a field of type bytes or string.
func AppendBytes[T string | []byte](dst []byte, field protowire.Number, v T) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return append(protowire.AppendVarint(dst, uint64(len(v))), v...)
}

// SizeBytes returns the size of what AppendBytes appends for n bytes.
func SizeBytes(field protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// AppendNested appends a field whose content is what f appends, followed by
// behind bytes that the caller appends.
func AppendNested(dst []byte, field protowire.Number, behind int, f func(dst []byte) []byte) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	begin := len(dst)
	dst = f(dst)
	var length [binary.MaxVarintLen64]byte // comes first but is known last
	return slices.Insert(dst, begin, protowire.AppendVarint(length[:0], uint64(len(dst)-begin+behind))...)
}
