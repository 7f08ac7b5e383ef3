package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// SequenceAt returns the sequence of the first batch that the stream has from a
// time on, by the server's clock; one above the last if there is none. The
// error is fault.Unavailable.
func (b *Bus) SequenceAt(ctx context.Context, begin time.Time) (uint64, error) {
	ctx, done := b.request(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return 0, unavailable("ask for stream "+b.names.batches, err)
	}
	return b.firstSince(ctx, begin, stream.CachedInfo().State.LastSeq)
}

// firstSince returns the sequence of the first message stored at or after
// begin, last+1 if there is none. The server finds it by time; the client
// library has no call for that. The answer carries the message, which is the
// price of not needing the right to create consumers.
func (b *Bus) firstSince(ctx context.Context, begin time.Time, last uint64) (uint64, error) {
	operation := "find the first message since " + begin.UTC().Format(time.RFC3339)
	request, err := json.Marshal(map[string]time.Time{"start_time": begin.UTC()})
	if err != nil {
		return 0, err
	}
	answer, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+b.names.batches, request)
	if err != nil {
		return 0, unavailable(operation, err)
	}
	var found struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer.Data, &found); err != nil {
		return 0, fmt.Errorf("%s: %w", operation, err)
	}
	switch {
	case found.Error != nil && found.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return last + 1, nil
	case found.Error != nil:
		return 0, unavailable(operation, found.Error)
	}
	return found.Message.Seq, nil
}
