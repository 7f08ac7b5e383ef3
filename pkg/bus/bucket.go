package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/fault"
)

// Bucket is a replicated table of keys and values, small enough to be held in
// memory by whoever follows it.
type Bucket struct {
	bus  *Bus
	name string
}

// IdentityBucket returns the bucket in which authsvc tells verifiers who may
// push.
func (b *Bus) IdentityBucket() *Bucket { return &Bucket{bus: b, name: b.names.identity} }

// ConfigBucket returns the bucket in which collectors' configuration is told to
// gateways, and what collectors say about it.
func (b *Bus) ConfigBucket() *Bucket { return &Bucket{bus: b, name: b.names.config} }

// bucketStream is the name of the stream below a bucket.
func bucketStream(bucket string) string { return "KV_" + bucket }

// bucketSubject is what the subjects of a bucket's keys begin with.
func bucketSubject(bucket string) string { return "$KV." + bucket + "." }

// Put returns nil once the value lies on the server's disk. The error is
// fault.Unavailable, or unclassified for a key with other characters than
// letters, digits and -/_=. .
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.with(ctx, "put", key, func(ctx context.Context, kv jetstream.KeyValue) error {
		_, err := kv.Put(ctx, key, value)
		return err
	})
}

// reviseTries bounds how often others may come first. They are the few writers
// of one installation.
const reviseTries = 10

// Revise puts what change makes of a key's value, and is sure that nobody else
// put anything in between: if somebody did, change is asked again. It is given
// nil for a key without value, and returns nil to leave the value as it is.
// Errors are as for Put.
func (b *Bucket) Revise(ctx context.Context, key string, change func(old []byte) []byte) error {
	return b.with(ctx, "revise", key, func(ctx context.Context, kv jetstream.KeyValue) error {
		for try := 1; ; try++ {
			err := revise(ctx, kv, key, change)
			other := errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
			if !other || try == reviseTries {
				return err
			}
		}
	})
}

// revise errs with ErrKeyExists or ErrKeyRevisionMismatch when somebody else
// came first.
func revise(ctx context.Context, kv jetstream.KeyValue, key string, change func(old []byte) []byte) error {
	entry, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		if value := change(nil); value != nil {
			_, err = kv.Create(ctx, key, value)
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	if value := change(entry.Value()); value != nil {
		_, err = kv.Update(ctx, key, value, entry.Revision())
	}
	return err
}

// Delete removes a key; that it is not there is no error. Errors are as for
// Put.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	return b.with(ctx, "delete", key, func(ctx context.Context, kv jetstream.KeyValue) error {
		return kv.Delete(ctx, key)
	})
}

// Get returns a key's value. The error is fault.NotFound if it has none, else
// as for Put.
func (b *Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	err := b.with(ctx, "get", key, func(ctx context.Context, kv jetstream.KeyValue) error {
		entry, err := kv.Get(ctx, key)
		if err == nil {
			value = entry.Value()
		}
		return err
	})
	return value, err
}

func (b *Bucket) with(ctx context.Context, verb, key string, do func(context.Context, jetstream.KeyValue) error) error {
	ctx, done := b.bus.request(ctx)
	defer done()
	operation := fmt.Sprintf("%s %s in bucket %s", verb, key, b.name)
	kv, err := b.bus.js.KeyValue(ctx, b.name)
	if err == nil {
		err = do(ctx, kv)
	}
	switch {
	case errors.Is(err, jetstream.ErrInvalidKey):
		return fmt.Errorf("%s: %w", operation, err)
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return fault.Wrap(fault.NotFound, fmt.Errorf("%s: %w", operation, err))
	}
	if e, ok := errors.AsType[*fault.Error](err); ok { // do knew better
		return fmt.Errorf("%s: %w", operation, e)
	}
	return unavailable(operation, err)
}
