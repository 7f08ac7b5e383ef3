package uplink

import (
	"crypto/sha256"
	"fmt"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch/batchpb"
)

// maxInflated bounds what a body may become; a gateway takes no more either.
const maxInflated = 64 << 20

// DecodeBody reads a body in the native form, as it lies in the spool.
func DecodeBody(body []byte) (*batchpb.PushRequest, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxInflated))
	if err != nil {
		return nil, fmt.Errorf("decode body: %w", err)
	}
	defer z.Close()
	text, err := z.DecodeAll(body, nil)
	if err != nil {
		return nil, fmt.Errorf("decode body: %w", err)
	}
	var push batchpb.PushRequest
	if err := proto.Unmarshal(text, &push); err != nil {
		return nil, fmt.Errorf("decode body: %w", err)
	}
	return &push, nil
}

// rest makes a batch of the refused items of an accepted one: what was accepted
// is stored under the batch's id, so the others can be sent again only under
// another. It has no number, for it is no part of the numbering. The id is a
// function of the batch's and has its time: made twice it is the same batch.
// Nothing if the items cannot be told apart: the answer does not list them all,
// or the body is in another form.
func (a *acceptance) rest(body []byte) (uuid.UUID, []byte) {
	if len(a.Rejected) == 0 || a.RejectedMore > 0 {
		return uuid.Nil, nil
	}
	push, err := DecodeBody(body)
	if err != nil {
		return uuid.Nil, nil
	}
	id, err := uuid.FromBytes(push.GetBatchId())
	if err != nil {
		return uuid.Nil, nil
	}
	id = restID(id)
	var refused []*batchpb.Section
	for _, r := range a.Rejected {
		if r.Index < 0 || r.Index >= len(push.GetSections()) {
			return uuid.Nil, nil
		}
		refused = append(refused, push.GetSections()[r.Index])
	}
	push.BatchId, push.Sections, push.SectionCount = id[:], refused, uint32(len(refused))
	push.Epoch, push.Sequence, push.Previous, push.Refused = nil, 0, nil, nil
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(push)
	if err != nil {
		return uuid.Nil, nil
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		return uuid.Nil, nil
	}
	return id, z.EncodeAll(text, nil)
}

// restID keeps the first 48 bits, the time, of a UUIDv7.
func restID(id uuid.UUID) uuid.UUID {
	sum := sha256.Sum256(append([]byte("rest of "), id[:]...))
	copy(id[6:], sum[:])
	id[6] = id[6]&0x0f | 0x70 // version 7
	id[8] = id[8]&0x3f | 0x80 // RFC 9562
	return id
}
