package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// Stamp is a batch's place in the numbering, given before the batch is
// encoded so that the body can carry it.
type Stamp struct {
	batch.Mark            // epoch and sequence
	BatchID    uuid.UUID  // UUIDv7, made when the batch was built
	Previous   batch.Mark // end of the epoch before; zero but in an epoch's first batch
	Refused    []uint64   // numbers of this epoch that the gateway refused for good
}

// Record is one batch as it lies in the spool.
type Record struct {
	Stamp
	Body []byte // the very bytes that are sent, at every attempt
}

// A record is a header and the body. Numbers are big endian.
//
//	 0  magic
//	 4  CRC32C of the header from byte 8 on, which includes that of the body
//	 8  CRC32C of the body
//	12  length of the body
//	16  epoch, 24: see offsets below
//	84  refused numbers, 8 bytes each
const (
	offHeaderSum   = 4
	offBodySum     = 8
	offBodyLen     = 12
	offEpoch       = 16
	offSequence    = 32
	offBatchID     = 40
	offPrevEpoch   = 56
	offPrevSeq     = 72
	offRefused     = 80
	fixedHeaderLen = 84
)

// Limits of one record. A length beyond them is damage, not data.
const (
	maxBodyBytes = 64 << 20
	maxRefused   = 1000 // more wait for the next batch
)

var (
	magic      = []byte("\x89PSR")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errTorn    = errors.New("record is incomplete") // the data ends inside the record
	errDamaged = errors.New("record is damaged")
)

// appendRecord appends the record's bytes to dst.
func appendRecord(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, 0, 0, 0, 0) // header sum, below
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(r.Body, castagnoli))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(r.Body)))
	dst = append(dst, r.Epoch[:]...)
	dst = binary.BigEndian.AppendUint64(dst, r.Sequence)
	dst = append(dst, r.BatchID[:]...)
	dst = append(dst, r.Previous.Epoch[:]...)
	dst = binary.BigEndian.AppendUint64(dst, r.Previous.Sequence)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(r.Refused)))
	for _, n := range r.Refused {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	header := dst[start:]
	binary.BigEndian.PutUint32(header[offHeaderSum:], crc32.Checksum(header[offBodySum:], castagnoli))
	return append(dst, r.Body...)
}

// header is a record's head, read and checked, without its body.
type header struct {
	Stamp
	bodySum uint32
	bodyLen int
	size    int // of the header
}

// decodeHeader reads the header at the start of data. Errors: errTorn,
// errDamaged.
func decodeHeader(data []byte) (header, error) {
	if len(data) < fixedHeaderLen {
		if n := min(len(data), len(magic)); !bytes.Equal(data[:n], magic[:n]) {
			return header{}, errDamaged
		}
		return header{}, errTorn
	}
	if !bytes.HasPrefix(data, magic) {
		return header{}, errDamaged
	}
	refused := binary.BigEndian.Uint32(data[offRefused:])
	if refused > maxRefused {
		return header{}, errDamaged
	}
	size := fixedHeaderLen + 8*int(refused)
	if len(data) < size {
		return header{}, errTorn
	}
	if binary.BigEndian.Uint32(data[offHeaderSum:]) != crc32.Checksum(data[offBodySum:size], castagnoli) {
		return header{}, errDamaged
	}
	h := header{
		bodySum: binary.BigEndian.Uint32(data[offBodySum:]),
		bodyLen: int(binary.BigEndian.Uint32(data[offBodyLen:])),
		size:    size,
	}
	if h.bodyLen > maxBodyBytes {
		return header{}, errDamaged
	}
	copy(h.Epoch[:], data[offEpoch:])
	h.Sequence = binary.BigEndian.Uint64(data[offSequence:])
	copy(h.BatchID[:], data[offBatchID:])
	copy(h.Previous.Epoch[:], data[offPrevEpoch:])
	h.Previous.Sequence = binary.BigEndian.Uint64(data[offPrevSeq:])
	for i := range int(refused) {
		h.Refused = append(h.Refused, binary.BigEndian.Uint64(data[fixedHeaderLen+8*i:]))
	}
	return h, nil
}

// decodeRecord reads the record at the start of data and returns its length.
// Body aliases data. With errDamaged or errTorn, the stamp is set if the
// header was readable.
func decodeRecord(data []byte) (Record, int, error) {
	h, err := decodeHeader(data)
	if err != nil {
		return Record{}, 0, err
	}
	r := Record{Stamp: h.Stamp}
	end := h.size + h.bodyLen
	if len(data) < end {
		return r, 0, errTorn
	}
	r.Body = data[h.size:end]
	if crc32.Checksum(r.Body, castagnoli) != h.bodySum {
		return r, 0, errDamaged
	}
	return r, end, nil
}

// entry is a record's place in a segment.
type entry struct {
	Stamp
	off, size int
}

// damage is what scan could not read.
type damage struct {
	bytes int64
	torn  bool       // nothing but an incomplete last record: an append that was never confirmed
	lost  batch.Mark // number behind the last readable record whose own record is damaged; zero: none known
}

// scan finds every readable record of a segment. It passes over what is
// damaged and goes on at the next whole record.
func scan(data []byte) ([]entry, damage) {
	var entries []entry
	var d damage
	for off := 0; off < len(data); {
		r, n, err := decodeRecord(data[off:])
		if err == nil {
			entries = append(entries, entry{Stamp: r.Stamp, off: off, size: n})
			d.lost = batch.Mark{}
			off += n
			continue
		}
		next := nextRecord(data, off+1)
		d.torn = errors.Is(err, errTorn) && next == len(data) && d.bytes == 0
		if !d.torn && r.Sequence != 0 {
			d.lost = r.Mark
		}
		d.bytes += int64(next - off)
		off = next
	}
	return entries, d
}

// nextRecord returns the place of the first whole record at or after off, or
// len(data).
func nextRecord(data []byte, off int) int {
	for off < len(data) {
		i := bytes.Index(data[off:], magic)
		if i < 0 {
			break
		}
		off += i
		if _, _, err := decodeRecord(data[off:]); err == nil {
			return off
		}
		off++
	}
	return len(data)
}
