package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// facts are what one round of the trimmer sees: the stream, its consumer, and
// then the holds.
type facts struct {
	stream   jetstream.Stream
	info     *jetstream.StreamInfo
	consumer *jetstream.ConsumerInfo
	holds    []Hold        // those on this stream
	unstored time.Duration // age of the oldest message that is not stored, 0 if all are
}

// look asks the server for the facts. The error is fault.Unavailable.
func (b *Bus) look(ctx context.Context) (facts, error) {
	stream, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return facts{}, unavailable("ask for stream "+b.names.batches, err)
	}
	consumer, err := stream.Consumer(ctx, b.names.consumer)
	if err != nil {
		return facts{}, unavailable("ask for consumer "+b.names.consumer, err)
	}
	f := facts{stream: stream, info: stream.CachedInfo(), consumer: consumer.CachedInfo()}
	holds, err := b.Holds().List(ctx)
	if err != nil {
		return facts{}, err
	}
	for _, h := range holds {
		if h.keeps(incarnation(f.info)) {
			f.holds = append(f.holds, h)
		}
	}
	f.unstored, err = f.unstoredAge(ctx, b.names.batch+"*")
	return f, err
}

// unstoredAge asks for the first message above the ack floor. By the server's
// clock, as the message's time is.
func (f *facts) unstoredAge(ctx context.Context, subjects string) (time.Duration, error) {
	if f.stored() > f.info.State.LastSeq {
		return 0, nil
	}
	msg, err := f.stream.GetMsg(ctx, f.stored(), jetstream.WithGetMsgSubject(subjects))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, unavailable(fmt.Sprintf("ask for the first message from %d on", f.stored()), err)
	}
	return max(0, f.info.TimeStamp.Sub(msg.Time)), nil
}

// stored returns the first sequence that is not known to be stored. A consumer
// that is new has its floor before the first message, so nothing lies below.
func (f *facts) stored() uint64 {
	return min(f.consumer.AckFloor.Stream, f.info.State.LastSeq) + 1
}

// held returns the hold that keeps most, nil if there is none.
func (f *facts) held() *Hold {
	var most *Hold
	for i := range f.holds {
		if most == nil || f.holds[i].From < most.From {
			most = &f.holds[i]
		}
	}
	return most
}

// limit returns the first sequence that must stay whatever the reasons to
// purge: all of them only choose among what lies below it.
func (f *facts) limit() uint64 {
	if h := f.held(); h != nil {
		return min(f.stored(), h.From)
	}
	return f.stored()
}

// tell sets the gauges.
func (f *facts) tell(m *metrics) {
	state := f.info.State
	m.streamBytes.Set(float64(state.Bytes))
	window := time.Duration(0)
	if state.Msgs > 0 {
		window = max(0, f.info.TimeStamp.Sub(state.FirstTime))
	}
	m.replayWindow.Set(window.Seconds())
	m.unstored.Set(f.unstored.Seconds())
	m.ackPending.Set(float64(f.consumer.NumAckPending))
	m.redeliveredPending.Set(float64(f.consumer.NumRedelivered))
	m.holds.Set(float64(len(f.holds)))
	from := uint64(0)
	if h := f.held(); h != nil {
		from = h.From
	}
	m.holdFrom.Set(float64(from))
}
