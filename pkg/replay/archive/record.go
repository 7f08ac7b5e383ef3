// Package archive keeps a part of the stream in a directory: for longer than
// the stream does, or on another host. A directory has an index and segments:
//
//	index.json    what the segments hold; see Index
//	*.segment     the magic, then records; named by its first sequence
//	record        length of the body (4 bytes, big endian), its SHA-256, the body
//	body          sequence and time in ns since 1970 (8 bytes each), length of
//	              the subject (2 bytes), subject, payload
//
// Its invariants: what the index names lies on the disk and is whole; what is
// read back is byte for byte what was written, or is told as damaged. The
// package knows neither the stream nor the database, and does not look into
// payloads but for the time at which a batch was sent.
package archive

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"pganalytics/pkg/batch"
)

const magic = "pganalytics segment 1\n"

const (
	headSize  = 4 + sha256.Size
	fixedSize = 8 + 8 + 2
	// maxBody is above what NATS lets any message be, 64 MiB. A longer one is a
	// damaged length, and nothing to make room for.
	maxBody = 65 << 20
)

// errDamaged is a record that is not as it was written; errCut means that where
// the next one begins is not known either.
var (
	errDamaged = errors.New("its bytes have changed")
	errCut     = errors.New("it is cut off or its length has changed")
)

// appendRecord appends a message as a record.
func appendRecord(buf []byte, d *batch.Delivery) ([]byte, error) {
	size := fixedSize + len(d.Subject) + len(d.Payload)
	if size > maxBody || len(d.Subject) > math.MaxUint16 {
		return buf, fmt.Errorf("message %d has %d bytes, more than any may have", d.Sequence, size)
	}
	begin := len(buf)
	buf = binary.BigEndian.AppendUint32(buf, uint32(size))
	buf = append(buf, make([]byte, sha256.Size)...)
	buf = binary.BigEndian.AppendUint64(buf, d.Sequence)
	buf = binary.BigEndian.AppendUint64(buf, uint64(d.StoredAt.UnixNano()))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(d.Subject)))
	buf = append(append(buf, d.Subject...), d.Payload...)
	sum := sha256.Sum256(buf[begin+headSize:])
	copy(buf[begin+4:], sum[:])
	return buf, nil
}

// readRecord reads the next record. io.EOF is a good end; after errDamaged the
// next record may follow, after errCut nothing can.
func readRecord(r *bufio.Reader) (batch.Delivery, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err == io.EOF {
		return batch.Delivery{}, io.EOF
	} else if err != nil {
		return batch.Delivery{}, cut(err)
	}
	size := binary.BigEndian.Uint32(head[:4])
	if size < fixedSize || size > maxBody {
		return batch.Delivery{}, errCut
	}
	// Read as it comes: a damaged length takes no more memory than there is file.
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return batch.Delivery{}, err
	}
	if len(body) < int(size) {
		return batch.Delivery{}, errCut
	}
	if sha256.Sum256(body) != [sha256.Size]byte(head[4:]) {
		return batch.Delivery{}, errDamaged
	}
	subject := int(binary.BigEndian.Uint16(body[16:]))
	if fixedSize+subject > len(body) {
		return batch.Delivery{}, errDamaged
	}
	return batch.Delivery{
		Position: batch.Position{
			Sequence: binary.BigEndian.Uint64(body),
			StoredAt: time.Unix(0, int64(binary.BigEndian.Uint64(body[8:]))).UTC(),
		},
		Subject: string(body[fixedSize : fixedSize+subject]),
		Payload: body[fixedSize+subject:],
	}, nil
}

// cut tells the end of a file within a record from a disk that does not read.
func cut(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return err
}
