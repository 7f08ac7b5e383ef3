package wire

import (
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field is one field of a message; Uint or Bytes by its type, neither if it is
// of a type that no field of ours has.
type Field struct {
	Num   protowire.Number
	Type  protowire.Type
	Uint  uint64
	Bytes []byte
}

// Fields goes through a message as far as it is one. The bytes of its fields
// are its own.
func Fields(data []byte) iter.Seq2[Field, error] {
	return func(yield func(Field, error) bool) {
		for len(data) > 0 {
			f, n := next(data)
			if n < 0 {
				yield(Field{}, protowire.ParseError(n))
				return
			}
			if data = data[n:]; !yield(f, nil) {
				return
			}
		}
	}
}

// next returns the first field and its length, which is negative if there is
// none.
func next(data []byte) (f Field, n int) {
	f.Num, f.Type, n = protowire.ConsumeTag(data)
	if n < 0 {
		return f, n
	}
	if f.Num > protowire.MaxValidNumber {
		return f, -1
	}
	var value int
	switch f.Type {
	case protowire.VarintType:
		f.Uint, value = protowire.ConsumeVarint(data[n:])
	case protowire.BytesType:
		f.Bytes, value = protowire.ConsumeBytes(data[n:])
	default:
		value = protowire.ConsumeFieldValue(f.Num, f.Type, data[n:])
	}
	if value < 0 {
		return f, value
	}
	return f, n + value
}

// Numbers appends what a list of numbers has in one field, packed or not.
func (f *Field) Numbers(dst []uint64) ([]uint64, error) {
	if f.Type == protowire.VarintType {
		return append(dst, f.Uint), nil
	}
	for data := f.Bytes; len(data) > 0; {
		v, n := protowire.ConsumeVarint(data)
		if n < 0 {
			return dst, protowire.ParseError(n)
		}
		dst, data = append(dst, v), data[n:]
	}
	return dst, nil
}
