package pulled

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
)

// Bucket is where records lie for gateways. Revise puts what change makes of a
// key's value, nil for none, unless it returns nil, and is sure that nobody
// came in between. Get errs with fault.NotFound.
type Bucket interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Revise(ctx context.Context, key string, change func(old []byte) []byte) error
}

// Versions are those that are committed.
type Versions interface {
	// NewestConfigs returns the newest version of each document.
	NewestConfigs(ctx context.Context) ([]Version, error)
}

// Publish puts a version into the bucket unless a newer one, or the same, is
// there. Errors are the bucket's.
func Publish(ctx context.Context, b Bucket, v Version) error {
	value, err := json.Marshal(Record{v.Number, v.Document})
	if err != nil {
		return err
	}
	return b.Revise(ctx, keyOf(documentKey, v.Collector), func(old []byte) []byte {
		// What cannot be read is nobody's version.
		if there, err := decode[Record]("", old); err == nil && there.Version >= v.Number {
			return nil
		}
		return value
	})
}

// Reconcile publishes what is committed and not in the bucket: whoever set it
// may have died before, and the bucket may have been made anew. The default
// comes last, so that no collector takes it for want of its own.
func Reconcile(ctx context.Context, from Versions, b Bucket) error {
	versions, err := from.NewestConfigs(ctx)
	if err != nil {
		return fmt.Errorf("read the newest configurations: %w", err)
	}
	slices.SortStableFunc(versions, func(x, y Version) int { return rank(x) - rank(y) })
	for _, v := range versions {
		if err := Publish(ctx, b, v); err != nil {
			return fmt.Errorf("publish configuration %d: %w", v.Number, err)
		}
	}
	return nil
}

func rank(v Version) int {
	if v.Collector == uuid.Nil {
		return 1
	}
	return 0
}

// Published returns the record in the bucket, zero if there is none.
func Published(ctx context.Context, b Bucket, collector uuid.UUID) (Record, error) {
	return get[Record](ctx, b, keyOf(documentKey, collector))
}

// StateOf returns what a collector said last, zero if nothing.
func StateOf(ctx context.Context, b Bucket, collector uuid.UUID) (State, error) {
	return get[State](ctx, b, keyOf(stateKey, collector))
}

func putState(ctx context.Context, b Bucket, collector uuid.UUID, s State) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return b.Put(ctx, keyOf(stateKey, collector), value)
}

// Ask puts the request to resend into the bucket and returns it, or the one
// that is there if it asks for the same and the collector has not done it.
func Ask(ctx context.Context, b Bucket, collector uuid.UUID, r Resend) (Resend, error) {
	state, err := StateOf(ctx, b, collector)
	if err != nil {
		return Resend{}, err
	}
	value, err := json.Marshal(r)
	if err != nil {
		return Resend{}, err
	}
	asked := r
	err = b.Revise(ctx, keyOf(resendKey, collector), func(old []byte) []byte {
		there, err := decode[Resend]("", old)
		open := err == nil && (state.Resent == nil || state.Resent.ID != there.ID)
		if open && slices.Equal(there.Ranges, r.Ranges) {
			asked = there
			return nil
		}
		asked = r
		return value
	})
	return asked, err
}

func get[T any](ctx context.Context, b Bucket, key string) (T, error) {
	var none T
	value, err := b.Get(ctx, key)
	if fault.ClassOf(err) == fault.NotFound {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	return decode[T](key, value)
}
