package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// Guard compares the server, streams, consumer and buckets with what the promise
// needs and names every difference. It is meant to run at start and every minute: whoever
// may administer the server can set an age limit, and from then on the stream
// forgets. What the API does not tell it cannot check: that the servers sync
// every write is theirs to configure. The bucket of configurations is left out:
// no batch depends on it, and what is lost of it is published again.
//
// An error that tells only that the server did not answer is
// fault.Unavailable; a wrong configuration is an unclassified error.
func (b *Bus) Guard(ctx context.Context) error {
	ctx, done := b.request(ctx)
	defer done()
	batches, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return unavailable("ask for stream "+b.names.batches, err)
	}
	consumer, err := batches.Consumer(ctx, b.names.consumer)
	if err != nil {
		return unavailable("ask for consumer "+b.names.consumer, err)
	}
	letters, err := b.js.Stream(ctx, b.names.deadLetters)
	if err != nil {
		return unavailable("ask for stream "+b.names.deadLetters, err)
	}
	identity, err := b.js.Stream(ctx, bucketStream(b.names.identity))
	if err != nil {
		return unavailable("ask for bucket "+b.names.identity, err)
	}
	holds, err := b.js.Stream(ctx, bucketStream(b.names.holds))
	if err != nil {
		return unavailable("ask for bucket "+b.names.holds, err)
	}
	return errors.Join(
		b.serverFaults(),
		b.batchesFaults(batches.CachedInfo().Config),
		b.consumerFaults(consumer.CachedInfo().Config),
		b.deadLettersFaults(letters.CachedInfo().Config),
		b.identityFaults(identity.CachedInfo().Config),
		b.holdsFaults(holds.CachedInfo().Config),
	)
}

// faults gathers what is wrong with one thing on the server.
type faults struct {
	subject string
	errs    []error
}

func (f *faults) check(ok bool, format string, args ...any) {
	if !ok {
		f.errs = append(f.errs, fmt.Errorf(f.subject+": "+format, args...))
	}
}

func (b *Bus) serverFaults() error {
	f := faults{subject: "nats server " + b.nc.ConnectedServerName()}
	f.check(b.MaxPayload() >= b.cfg.MinPayload, "max_payload is %d, must be at least %d: larger batches would be refused", b.MaxPayload(), b.cfg.MinPayload)
	return errors.Join(f.errs...)
}

func (b *Bus) batchesFaults(have jetstream.StreamConfig) error {
	f := faults{subject: "stream " + have.Name}
	f.stream(have, b.batchesConfig())
	f.check(have.MaxMsgsPerSubject <= 0, "max messages per subject is %d, must be unlimited", have.MaxMsgsPerSubject)
	f.check(!have.AllowRollup, "rollup is allowed, so one message can purge others")
	f.check(!have.DenyPurge, "purge is denied, so it can only fill up")
	return errors.Join(f.errs...)
}

func (b *Bus) deadLettersFaults(have jetstream.StreamConfig) error {
	f := faults{subject: "stream " + have.Name}
	f.stream(have, b.deadLettersConfig())
	f.check(have.MaxMsgsPerSubject == 1, "max messages per subject is %d, must be 1", have.MaxMsgsPerSubject)
	f.check(have.DiscardNewPerSubject, "a full subject discards its old message")
	f.check(!have.AllowRollup, "rollup is allowed, so one message can purge others")
	return errors.Join(f.errs...)
}

func (b *Bus) identityFaults(have jetstream.StreamConfig) error {
	f := faults{subject: "stream " + have.Name}
	want := jetstream.StreamConfig{Subjects: []string{bucketSubject(b.names.identity) + ">"}, Replicas: b.cfg.Replicas, MaxBytes: -1}
	f.stream(have, want)
	f.check(have.MaxMsgsPerSubject == 1, "history is %d, must be 1", have.MaxMsgsPerSubject)
	return errors.Join(f.errs...)
}

func (b *Bus) holdsFaults(have jetstream.StreamConfig) error {
	f := faults{subject: "stream " + have.Name}
	f.stream(have, b.holdsConfig())
	f.check(have.MaxMsgsPerSubject == 1, "history is %d, must be 1", have.MaxMsgsPerSubject)
	f.check(!have.AllowDirect, "replicas answer that may not know the last hold")
	return errors.Join(f.errs...)
}

// stream checks what every one of our streams needs.
func (f *faults) stream(have, want jetstream.StreamConfig) {
	f.check(have.Storage == jetstream.FileStorage, "storage is %s, must be file", have.Storage)
	f.check(have.PersistMode == jetstream.DefaultPersistMode, "writes are confirmed before they are on disk")
	f.check(have.Retention == jetstream.LimitsPolicy, "retention is %s, must be limits", have.Retention)
	f.check(have.Discard == jetstream.DiscardNew, "discard is %s, must be new: a full stream would forget", have.Discard)
	f.check(have.MaxAge == 0, "max age is %s, must be unlimited: age would discard what is not stored", have.MaxAge)
	f.check(!have.AllowMsgTTL, "messages may carry a time to live")
	f.check(have.MaxMsgs <= 0, "max messages is %d, must be unlimited", have.MaxMsgs)
	f.check(have.MaxMsgSize <= 0, "max message size is %d, must be the server's", have.MaxMsgSize)
	f.check((have.MaxBytes > 0) == (want.MaxBytes > 0), "max bytes is %d", have.MaxBytes)
	f.check(have.Replicas >= want.Replicas, "replicas are %d, must be at least %d", have.Replicas, want.Replicas)
	f.check(slices.Equal(have.Subjects, want.Subjects), "subjects are %q, must be %q", have.Subjects, want.Subjects)
	f.check(have.SubjectTransform == nil, "subjects are transformed")
	f.check(have.Mirror == nil && len(have.Sources) == 0, "it takes messages from other streams")
	f.check(!have.NoAck, "it does not acknowledge")
	f.check(!have.Sealed, "it is sealed")
}

func (b *Bus) consumerFaults(have jetstream.ConsumerConfig) error {
	want := b.consumerConfig()
	f := faults{subject: "consumer " + b.names.consumer}
	f.check(have.DeliverPolicy == want.DeliverPolicy, "deliver policy is %s, must be %s: it would skip messages", have.DeliverPolicy, want.DeliverPolicy)
	f.check(have.FilterSubject == "" && len(have.FilterSubjects) == 0, "it filters by subject")
	f.check(have.AckPolicy == want.AckPolicy, "ack policy is %s, must be %s", have.AckPolicy, want.AckPolicy)
	f.check(have.MaxDeliver == -1, "max deliver is %d, must be unlimited: the server would give up on messages", have.MaxDeliver)
	f.check(b.cfg.AnySettings || have.AckWait == want.AckWait, "ack wait is %s, must be %s", have.AckWait, want.AckWait)
	f.check(len(have.BackOff) == 0, "it has a back-off, which overrides the ack wait")
	f.check(b.cfg.AnySettings || have.MaxAckPending == want.MaxAckPending, "max ack pending is %d, must be %d", have.MaxAckPending, want.MaxAckPending)
	f.check(have.InactiveThreshold == 0, "it is deleted after %s without use", have.InactiveThreshold)
	f.check(have.ReplayPolicy == jetstream.ReplayInstantPolicy, "replay policy is %s, must be instant", have.ReplayPolicy)
	f.check(!have.HeadersOnly, "it delivers headers only")
	f.check(!have.MemoryStorage, "it keeps its state in memory")
	f.check(have.MaxRequestBatch <= 0 && have.MaxRequestMaxBytes <= 0 && have.MaxRequestExpires <= 0, "it limits requests")
	f.check(have.PauseUntil == nil, "it is paused until %v", have.PauseUntil)
	return errors.Join(f.errs...)
}
