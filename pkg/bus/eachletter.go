package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/batch"
)

// Each calls f for every letter, oldest first. Its cost is two requests a
// letter. The error is f's or fault.Unavailable.
func (d *DeadLetters) Each(ctx context.Context, f func(batch.Letter) error) error {
	for next := uint64(1); ; {
		msg, err := d.from(ctx, next)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return unavailable(fmt.Sprintf("read letter %d", next), err)
		}
		if err := f(letterFrom(msg.Header, msg.Data)); err != nil {
			return err
		}
		next = msg.Sequence + 1
	}
}
