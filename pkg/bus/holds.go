package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/fault"
)

// Hold keeps messages on the stream that would otherwise leave it once they
// are stored, because a database lacks them again or may: from From on nothing
// is purged until it is released.
type Hold struct {
	// Name tells this hold from others: letters, digits, _ and -, at most 64.
	Name string `json:"name"`
	// Incarnation of the stream that From and To are sequences of, as in
	// batch.Position. Empty stands for any stream, in holds that List could
	// not read.
	Incarnation string `json:"incarnation"`
	// From and To are the first and the last sequence needed. The trimmer
	// takes only from the beginning, so what follows To stays as well.
	From uint64 `json:"from"`
	To   uint64 `json:"to"`

	Reason string    `json:"reason"` // for people
	By     string    `json:"by"`     // who or what took it
	Since  time.Time `json:"since"`  // the taker's clock; Take sets it if it is zero

	// Work is what its taker needs to go on with after a crash, and nobody else
	// reads.
	Work string `json:"work,omitzero"`

	// Revision of the value in the bucket, set by Take, Advance and List: Advance
	// and Release want the one that is there.
	Revision uint64 `json:"-"`
}

// Holds are the holds of this installation. They lie in a bucket, so that every
// trimmer heeds them and they outlive whoever took them.
type Holds struct{ bucket *Bucket }

// Holds returns the holds of this installation.
func (b *Bus) Holds() *Holds { return &Holds{bucket: &Bucket{bus: b, name: b.names.holds}} }

// Take returns the hold as it lies on the server's disk. If there is one of
// that name, it then covers both, and has the new one's Reason, By and Work; one
// of another incarnation is replaced, for the sequences that it names are gone
// with their stream. An error leaves open whether the hold was taken; taking
// it again does no harm. Errors are fault.Invalid for a hold that makes no
// sense, fault.Conflict if the stream is not of its incarnation, and
// fault.Unavailable.
//
// A trimmer that had read the holds before may still be purging for the length
// of one round. What that takes away was not held; Reader.Missing tells of it,
// whenever it happened.
func (h *Holds) Take(ctx context.Context, hold Hold) (Hold, error) {
	if err := hold.validate(); err != nil {
		return Hold{}, err
	}
	if hold.Since.IsZero() {
		hold.Since = time.Now()
	}
	hold.Since = hold.Since.UTC().Round(0)
	var taken Hold
	err := h.bucket.with(ctx, "take", hold.Name, func(ctx context.Context, kv jetstream.KeyValue) error {
		for try := 1; ; try++ {
			var err error
			taken, err = h.take(ctx, kv, hold)
			other := errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
			if !other || try == reviseTries {
				return err
			}
		}
	})
	if err != nil {
		return Hold{}, err
	}
	return taken, nil
}

// take errs with ErrKeyExists or ErrKeyRevisionMismatch when somebody else came
// first.
func (h *Holds) take(ctx context.Context, kv jetstream.KeyValue, hold Hold) (Hold, error) {
	entry, err := kv.Get(ctx, hold.Name)
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return Hold{}, err
	}
	// Asked for after the entry was read: a hold of a newer stream that came
	// before is then noticed here, and one that comes later by its revision.
	// So one who does not know yet that the stream was made anew replaces none.
	stream, err := h.bucket.bus.js.Stream(ctx, h.bucket.bus.names.batches)
	if err != nil {
		return Hold{}, err
	}
	if now := incarnation(stream.CachedInfo()); now != hold.Incarnation {
		return Hold{}, fault.Wrap(fault.Conflict, fmt.Errorf("the stream is of %s, not of %s", now, hold.Incarnation))
	}
	if entry != nil {
		hold = hold.with(readHold(entry))
	}
	value, err := json.Marshal(hold)
	if err != nil {
		return Hold{}, err
	}
	// Written even if nothing changes: whoever is about to release the old one
	// must notice that it is needed again.
	if entry == nil {
		hold.Revision, err = kv.Create(ctx, hold.Name, value)
	} else {
		hold.Revision, err = kv.Update(ctx, hold.Name, value, entry.Revision())
	}
	return hold, err
}

// Advance puts a changed From, To or Work in the place of a hold as Take, List
// or Advance returned it, and returns it as it lies there then. Unlike Take it
// makes a hold smaller. Errors are fault.Invalid for a hold that makes no sense,
// fault.Conflict if it was released or taken again meanwhile, and
// fault.Unavailable, which leaves open whether it was advanced; advancing it
// again settles that.
func (h *Holds) Advance(ctx context.Context, hold Hold) (Hold, error) {
	if err := hold.validate(); err != nil {
		return Hold{}, err
	}
	value, err := json.Marshal(hold)
	if err != nil {
		return Hold{}, err
	}
	err = h.bucket.with(ctx, "advance", hold.Name, func(ctx context.Context, kv jetstream.KeyValue) (err error) {
		was := hold.Revision
		if was == 0 { // to the server this would mean: there is none
			return errNoRevision
		}
		hold.Revision, err = kv.Update(ctx, hold.Name, value, was)
		if !errors.Is(err, jetstream.ErrKeyExists) && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return err
		}
		entry, err := kv.Get(ctx, hold.Name)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			return fault.Wrap(fault.Conflict, errors.New("the hold was released"))
		case err != nil:
			return err
		case !bytes.Equal(entry.Value(), value):
			return takenAgain(entry.Revision(), was)
		}
		hold.Revision = entry.Revision() // the answer to the first try was lost
		return nil
	})
	if err != nil {
		return Hold{}, err
	}
	return hold, nil
}

// List returns all holds by name, also those of streams that are gone. One
// whose value cannot be read keeps everything, on any stream: nobody knows any
// more what it was for. The error is fault.Unavailable.
//
// It asks the bucket's leader for the keys first and then for each value, so
// it has every hold that was taken before it was called.
func (h *Holds) List(ctx context.Context) ([]Hold, error) {
	var holds []Hold
	err := h.bucket.with(ctx, "list", ">", func(ctx context.Context, kv jetstream.KeyValue) error {
		keys, err := h.bucket.keys(ctx)
		if err != nil {
			return err
		}
		for _, key := range keys {
			entry, err := kv.Get(ctx, key)
			if errors.Is(err, jetstream.ErrKeyNotFound) { // released
				continue
			}
			if err != nil {
				return err
			}
			holds = append(holds, readHold(entry))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return holds, nil
}

// Release ends a hold as Take or List returned it; that there is none any more
// is no error. Errors are fault.Conflict if it was taken again meanwhile, and
// fault.Unavailable.
func (h *Holds) Release(ctx context.Context, hold Hold) error {
	return h.bucket.with(ctx, "release", hold.Name, func(ctx context.Context, kv jetstream.KeyValue) error {
		if hold.Revision == 0 { // to the server this would mean: whatever is there
			return errNoRevision
		}
		err := kv.Delete(ctx, hold.Name, jetstream.LastRevision(hold.Revision))
		switch apiCode(err) {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		default:
			return err
		}
		entry, err := kv.Get(ctx, hold.Name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return takenAgain(entry.Revision(), hold.Revision)
	})
}

var errNoRevision = fault.Wrap(fault.Invalid, errors.New("the hold has no revision; list the holds first"))

func takenAgain(now, was uint64) error {
	return fault.Wrap(fault.Conflict, fmt.Errorf("the hold has revision %d, not %d: it was taken again", now, was))
}

var holdNamePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (h Hold) validate() error {
	switch {
	case !holdNamePattern.MatchString(h.Name):
		return fault.Wrap(fault.Invalid, fmt.Errorf("the hold's name %q is not of 1 to 64 letters, digits, _ and -", h.Name))
	case h.Incarnation == "":
		return fault.Wrap(fault.Invalid, errors.New("the hold names no incarnation of the stream"))
	case h.From > h.To:
		return fault.Wrap(fault.Invalid, fmt.Errorf("the hold ends at %d, before it begins at %d", h.To, h.From))
	}
	return nil
}

// with returns a hold that also covers an older one of its name. An unreadable
// one keeps everything, and so does the hold that takes its place.
func (h Hold) with(older Hold) Hold {
	if !older.keeps(h.Incarnation) {
		return h
	}
	h.From, h.To = min(h.From, older.From), max(h.To, older.To)
	if !older.Since.IsZero() {
		h.Since = older.Since
	}
	return h
}

// keeps reports whether the hold is one on this stream.
func (h Hold) keeps(incarnation string) bool {
	return h.Incarnation == "" || h.Incarnation == incarnation
}

func readHold(entry jetstream.KeyValueEntry) Hold {
	h := decodeHold(entry.Key(), entry.Value())
	h.Revision = entry.Revision()
	return h
}

// decodeHold reads a value that Take has written under key. Of anything else it
// makes a hold on everything.
func decodeHold(key string, value []byte) Hold {
	var h Hold
	err := json.Unmarshal(value, &h)
	if err == nil {
		err = h.validate()
	}
	if err == nil && h.Name != key {
		err = fmt.Errorf("it names itself %q", h.Name)
	}
	if err != nil {
		return Hold{Name: key, To: math.MaxUint64, Reason: "its value cannot be read: " + err.Error()}
	}
	return h
}

// keys returns the bucket's keys in order, also those that were deleted, as its
// leader has them.
func (b *Bucket) keys(ctx context.Context) ([]string, error) {
	stream, err := b.bus.js.Stream(ctx, bucketStream(b.name))
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return nil, err
	}
	var keys []string
	for subject := range info.State.Subjects {
		keys = append(keys, strings.TrimPrefix(subject, bucketSubject(b.name)))
	}
	slices.Sort(keys)
	return keys, nil
}
