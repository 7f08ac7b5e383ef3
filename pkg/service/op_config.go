package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/policy"
	"pganalytics/pkg/policy/pulled"
)

// Configs is where operators work on what collectors pull.
type Configs struct {
	store     *pgstore.Store
	bucket    *bus.Bucket
	catalogue *catalogue.Catalogue
}

// Configs reaches database and stream. The function ends it.
func (i *Installation) Configs(ctx context.Context, stderr io.Writer) (*Configs, func(), error) {
	cat, err := i.Load()
	url, urlErr := i.Database.URL()
	if err := errors.Join(err, urlErr); err != nil {
		return nil, nil, err
	}
	b, err := i.Bus(ctx, stderr)
	if err != nil {
		return nil, nil, err
	}
	st, err := pgstore.Open(ctx, url)
	if err != nil {
		_ = b.Close(ctx)
		return nil, nil, err
	}
	end := func() {
		st.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchClose)
		defer cancel()
		_ = b.Close(ctx) // every write was answered
	}
	probe, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	if err := st.Ping(probe); err != nil {
		end()
		return nil, nil, fmt.Errorf("the database does not answer: %s", oneLine(err))
	}
	return &Configs{store: st, bucket: b.ConfigBucket(), catalogue: cat}, end, nil
}

// ConfigTarget is whose document is meant.
type ConfigTarget struct {
	ID   uuid.UUID `json:"collector_id,omitzero"` // zero: the default
	Name string    `json:"name"`
}

// Target finds a collector by name or id; "" is the default. Errors:
// authsvc.ErrNoCollector.
func (c *Configs) Target(ctx context.Context, nameOrID string) (ConfigTarget, error) {
	if nameOrID == "" {
		return ConfigTarget{Name: "default"}, nil
	}
	id, name, err := c.store.FindCollector(ctx, nameOrID)
	if errors.Is(err, authsvc.ErrNoCollector) {
		return ConfigTarget{}, fmt.Errorf("there is no collector %q", nameOrID)
	}
	return ConfigTarget{ID: id, Name: name}, err
}

// SetConfig is a new version of a document.
type SetConfig struct {
	Target          ConfigTarget
	File            string // where the document is from, for its faults
	Document        string // empty takes the document back
	Author, Comment string
	Expect          *int64 // the newest version as the author knows it; nil does not look
	By              string // for the audit
}

// Set commits a version and then publishes it. A document with faults is
// refused with all of them. After errUnpublished the version is committed.
func (c *Configs) Set(ctx context.Context, s SetConfig) (pulled.Version, error) {
	if s.Document != "" {
		if _, err := policy.Parse(s.File, []byte(s.Document), c.catalogue); err != nil {
			return pulled.Version{}, err
		}
	}
	if strings.TrimSpace(s.Comment) == "" {
		return pulled.Version{}, errors.New("say in the comment why")
	}
	above, err := c.published(ctx, s.Target.ID)
	if err != nil {
		return pulled.Version{}, err
	}
	v, err := c.store.AddConfig(ctx, pgstore.NewConfig{
		Collector: s.Target.ID, Document: s.Document, Author: s.Author, Comment: s.Comment, Expect: s.Expect,
		Above: above, By: authsvc.Act{Actor: s.By, At: time.Now().UTC()},
	})
	if fault.ClassOf(err) == fault.Precondition {
		err = fmt.Errorf("%w Look at config history, and set it again with its newest version", err)
	}
	if err != nil {
		return v, err
	}
	if err := pulled.Publish(ctx, c.bucket, v); err != nil {
		return v, fmt.Errorf("version %d is committed but %w: %s", v.Number, errUnpublished, oneLine(err))
	}
	return v, nil
}

var errUnpublished = errors.New("not published, which authsvc makes up for within half a minute")

// published returns the newest version that gateways may know for a document:
// the database may be from a backup.
func (c *Configs) published(ctx context.Context, id uuid.UUID) (int64, error) {
	own, fleet, err := c.records(ctx, id)
	return max(own.Version, fleet.Version), err
}

// records returns what the bucket has of a document and of the default.
func (c *Configs) records(ctx context.Context, id uuid.UUID) (own, fleet pulled.Record, err error) {
	if own, err = pulled.Published(ctx, c.bucket, id); err == nil {
		fleet, err = pulled.Published(ctx, c.bucket, uuid.Nil)
	}
	return own, fleet, err
}

// ConfigView is what there is for a collector, or the default.
type ConfigView struct {
	Target  ConfigTarget   `json:"target"`
	Version pulled.Version `json:"version"` // the one that counts, or that was asked for; number 0: there is none
	// Published is the version that gateways tell; 0: none.
	Published int64         `json:"published"`
	State     *pulled.State `json:"state,omitempty"` // what the collector says; nil: nothing yet
}

// Get returns the version that counts for the target, or the one of that
// number.
func (c *Configs) Get(ctx context.Context, target ConfigTarget, number int64) (ConfigView, error) {
	view := ConfigView{Target: target}
	v, err := c.store.Config(ctx, target.ID, number)
	if target.ID != uuid.Nil && (errors.Is(err, pgstore.ErrNoConfig) || number == 0 && v.Document == "") {
		v, err = c.elseDefault(ctx, v, number)
	}
	if errors.Is(err, pgstore.ErrNoConfig) && number == 0 {
		err = nil // there is none
	}
	if err != nil {
		return view, err
	}
	view.Version = v
	own, fleet, err := c.records(ctx, target.ID)
	if err != nil {
		return view, err
	}
	view.Published = pulled.Effective(own, fleet).Version
	if target.ID == uuid.Nil {
		return view, nil
	}
	s, err := pulled.StateOf(ctx, c.bucket, target.ID)
	if !s.At.IsZero() {
		view.State = &s
	}
	return view, err
}

// elseDefault returns the default's version instead of own, which has no
// document; own itself if there is none either.
func (c *Configs) elseDefault(ctx context.Context, own pulled.Version, number int64) (pulled.Version, error) {
	v, err := c.store.Config(ctx, uuid.Nil, number)
	if errors.Is(err, pgstore.ErrNoConfig) && own.Number > 0 {
		return own, nil
	}
	return v, err
}

// History returns the newest versions of the target's own document.
func (c *Configs) History(ctx context.Context, target ConfigTarget, most int) ([]pulled.Version, error) {
	return c.store.ConfigHistory(ctx, target.ID, most)
}

// Former returns a version of the target's own document. Errors:
// pgstore.ErrNoConfig.
func (c *Configs) Former(ctx context.Context, target ConfigTarget, number int64) (pulled.Version, error) {
	return c.store.Config(ctx, target.ID, number)
}
