package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// batchesConfig is the stream of batches. LimitsPolicy keeps what is acked, so
// that it can be replayed; DiscardNew refuses instead of forgetting; without
// MaxAge nothing leaves by itself. Such a stream stays full once it is full:
// see Trimmer.
func (b *Bus) batchesConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        b.names.batches,
		Description: "accepted batches, until stored and out of the replay window",
		Subjects:    []string{b.names.batch + "*"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardNew,
		MaxBytes:    b.cfg.BatchesMaxBytes,
		Duplicates:  b.cfg.DuplicateWindow,
		Replicas:    b.cfg.Replicas,
	}
}

// deadLettersConfig is the stream of letters: one message per subject, and the
// subject names the letter, so the same letter cannot lie there twice.
func (b *Bus) deadLettersConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:                 b.names.deadLetters,
		Description:          "batches that could not be stored, as they came",
		Subjects:             []string{b.names.dead + ">"},
		Retention:            jetstream.LimitsPolicy,
		Storage:              jetstream.FileStorage,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		MaxMsgsPerSubject:    1,
		MaxBytes:             b.cfg.DeadLettersMaxBytes,
		Duplicates:           b.cfg.DuplicateWindow,
		Replicas:             b.cfg.Replicas,
	}
}

// consumerConfig is the one consumer that all ingesters share. MaxDeliver −1:
// the server must never give up on a message that is not stored. A consumer
// that is missing is made anew from the stream's beginning; the ledger then
// recognises what is already stored.
func (b *Bus) consumerConfig() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Name:          b.names.consumer,
		Durable:       b.names.consumer,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       b.cfg.AckWait,
		MaxDeliver:    -1,
		MaxAckPending: b.cfg.MaxAckPending,
	}
}

// holdsConfig is the stream below the bucket of holds. It is made as a stream
// because the client library's buckets let every replica answer, and one that
// lags does not know a hold that was just taken. Without AllowDirect only the
// leader answers.
func (b *Bus) holdsConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketStream(b.names.holds),
		Description:       "from where the stream of batches must be kept, and why",
		Subjects:          []string{bucketSubject(b.names.holds) + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		MaxBytes:          -1,
		Duplicates:        b.cfg.DuplicateWindow,
		Replicas:          b.cfg.Replicas,
		DenyDelete:        true,
	}
}

// followedConfigs are the buckets that are followed. Any replica may answer for
// them: their records say by themselves which is newer.
func (b *Bus) followedConfigs() []jetstream.KeyValueConfig {
	bucket := func(name, description string) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{
			Bucket: name, Description: description, Storage: jetstream.FileStorage, History: 1, Replicas: b.cfg.Replicas,
		}
	}
	return []jetstream.KeyValueConfig{
		bucket(b.names.identity, "who may push, and the keys that prove it"),
		bucket(b.names.config, "what collectors are to read, and what they say about it"),
	}
}

// EnsureStreams creates the streams, the consumer and the buckets where they
// are missing. Of what exists it changes only what cannot lose anything: it
// raises MaxBytes, and sets the duplicate window, AckWait and MaxAckPending.
// Anything else that differs is left for Guard to name and for people to
// decide. Errors are fault.Unavailable.
func (b *Bus) EnsureStreams(ctx context.Context) error {
	for _, want := range []jetstream.StreamConfig{b.batchesConfig(), b.deadLettersConfig(), b.holdsConfig()} {
		if err := b.ensureStream(ctx, want); err != nil {
			return unavailable(fmt.Sprintf("ensure stream %s of at most %d bytes", want.Name, want.MaxBytes), err)
		}
	}
	if err := b.ensureConsumer(ctx, b.consumerConfig()); err != nil {
		return unavailable("ensure consumer "+b.names.consumer, err)
	}
	for _, want := range b.followedConfigs() {
		if err := b.ensureBucket(ctx, want); err != nil {
			return unavailable("ensure bucket "+want.Bucket, err)
		}
	}
	return nil
}

func (b *Bus) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	ctx, done := b.request(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = b.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			stream, err = b.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config
	next := have
	next.Duplicates = want.Duplicates
	if have.MaxBytes > 0 { // unlimited is a fault, which Guard names
		next.MaxBytes = max(have.MaxBytes, want.MaxBytes)
	}
	if next.Duplicates == have.Duplicates && next.MaxBytes == have.MaxBytes {
		return nil
	}
	b.log.Info("stream changed", "stream", want.Name, "max_bytes", next.MaxBytes, "duplicate_window", next.Duplicates)
	_, err = b.js.UpdateStream(ctx, next)
	return err
}

func (b *Bus) ensureConsumer(ctx context.Context, want jetstream.ConsumerConfig) error {
	ctx, done := b.request(ctx)
	defer done()
	consumer, err := b.js.Consumer(ctx, b.names.batches, want.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = b.js.CreateConsumer(ctx, b.names.batches, want)
		if errors.Is(err, jetstream.ErrConsumerExists) {
			consumer, err = b.js.Consumer(ctx, b.names.batches, want.Name)
		}
	}
	if err != nil {
		return err
	}
	have := consumer.CachedInfo().Config
	if have.AckWait == want.AckWait && have.MaxAckPending == want.MaxAckPending {
		return nil
	}
	have.AckWait, have.MaxAckPending = want.AckWait, want.MaxAckPending
	b.log.Info("consumer changed", "consumer", want.Name, "ack_wait", have.AckWait, "max_ack_pending", have.MaxAckPending)
	_, err = b.js.UpdateConsumer(ctx, b.names.batches, have)
	return err
}

func (b *Bus) ensureBucket(ctx context.Context, want jetstream.KeyValueConfig) error {
	ctx, done := b.request(ctx)
	defer done()
	_, err := b.js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		_, err = b.js.CreateKeyValue(ctx, want)
		if errors.Is(err, jetstream.ErrBucketExists) {
			return nil
		}
	}
	return err
}

// incarnation tells a stream from one recreated under its name with sequences
// that begin again.
func incarnation(info *jetstream.StreamInfo) string {
	return info.Created.UTC().Format(time.RFC3339Nano)
}
