package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says how to reach the database and how long to wait for it. A zero
// field takes its default.
type Config struct {
	// URL of the database, as libpq takes it. Secret: it may hold a password.
	// Required.
	URL string `json:"-"`

	// MaxConns is the number of sessions that may be open at once: one per
	// loader, one for maintenance, one for probes. Defaults to 4. With fewer,
	// loaders wait for one another.
	MaxConns int32

	// ConnectTimeout bounds the making of one session. Defaults to 10 s. When
	// too short, a loaded database looks like one that is away.
	ConnectTimeout time.Duration

	// StatementTimeout bounds one statement of a load, one COPY included.
	// Defaults to 60 s. When too short, large loads fail for ever; when too
	// long, a frozen loader keeps its batches locked for others.
	StatementTimeout time.Duration

	// LockTimeout bounds one wait for a lock other than that on a batch.
	// Defaults to 10 s. When too short, loads fail behind any change of the
	// schema.
	LockTimeout time.Duration

	// KeyTimeout bounds one wait for another loader that holds the same batch;
	// then its neighbours are stored and it is Contested. Defaults to 1 s. When
	// too long, a frozen loader holds up others; when too short, a batch that is
	// just being stored is handed out once more.
	KeyTimeout time.Duration

	// FrozenAfter is the age from which the transaction of a loader that holds
	// a contested batch is ended: its process is frozen, which no timeout of
	// PostgreSQL notices in mid-COPY. Defaults to 60 s; the stream's patience
	// with an unanswered message is right. When shorter than a load takes, loads
	// end one another.
	FrozenAfter time.Duration

	// IdleTimeout is how long a transaction may sit idle before the database
	// ends it. Defaults to 30 s. When too long, a frozen loader keeps its
	// batches locked for others.
	IdleTimeout time.Duration

	// ReplayWindow is how long acknowledged batches stay on the stream.
	// Defaults to 72 h. The ledger is kept that much longer; when shorter than
	// the stream's own, an old replay goes to the dead letters.
	ReplayWindow time.Duration

	// OnRewind is called when a database that was connected to lacks what this
	// process saw committed, before anything is loaded into it: whoever trims
	// the stream must keep it from r.From on. It is called once at a time. While
	// it returns an error the database counts as unavailable and is compared
	// again at the next try; without it, it always does. ctx ends when the store
	// is closed.
	OnRewind func(ctx context.Context, r Rewind) error
}

// Validate reports all faults at once, each with its flag and value.
func (c Config) Validate() error {
	var errs []error
	if c.URL == "" {
		errs = append(errs, errors.New("--database-url: is empty"))
	} else if _, err := pgxpool.ParseConfig(c.URL); err != nil {
		errs = append(errs, fmt.Errorf("--database-url: %w", err)) // pgx hides the password
	}
	if c.MaxConns < 0 || c.MaxConns > 1000 {
		errs = append(errs, fmt.Errorf("--database-max-conns: %d is not from 1 to 1000", c.MaxConns))
	}
	for _, d := range []struct {
		flag       string
		value, max time.Duration
	}{
		{"--database-connect-timeout", c.ConnectTimeout, time.Hour},
		{"--database-statement-timeout", c.StatementTimeout, time.Hour},
		{"--database-lock-timeout", c.LockTimeout, time.Hour},
		{"--database-key-timeout", c.KeyTimeout, time.Hour},
		{"frozen after", c.FrozenAfter, time.Hour},
		{"--database-idle-timeout", c.IdleTimeout, time.Hour},
		{"--replay-window", c.ReplayWindow, 365 * 24 * time.Hour},
	} {
		// PostgreSQL counts in milliseconds and takes 0 for "never".
		if d.value != 0 && d.value < time.Millisecond || d.value > d.max {
			errs = append(errs, fmt.Errorf("%s: %v is not from 1ms to %v", d.flag, d.value, d.max))
		}
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	orElse := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.MaxConns == 0 {
		c.MaxConns = 4
	}
	orElse(&c.ConnectTimeout, 10*time.Second)
	orElse(&c.StatementTimeout, time.Minute)
	orElse(&c.LockTimeout, 10*time.Second)
	orElse(&c.KeyTimeout, time.Second)
	orElse(&c.FrozenAfter, time.Minute)
	orElse(&c.IdleTimeout, 30*time.Second)
	orElse(&c.ReplayWindow, 72*time.Hour)
	return c
}

// String leaves out the URL, which may hold a password.
func (c Config) String() string {
	return fmt.Sprintf("store.Config{URL:[redacted] MaxConns:%d ConnectTimeout:%v StatementTimeout:%v LockTimeout:%v KeyTimeout:%v FrozenAfter:%v IdleTimeout:%v ReplayWindow:%v}",
		c.MaxConns, c.ConnectTimeout, c.StatementTimeout, c.LockTimeout, c.KeyTimeout, c.FrozenAfter, c.IdleTimeout, c.ReplayWindow)
}

// GoString leaves out the URL too.
func (c Config) GoString() string { return c.String() }

// LogValue leaves out the URL too.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }
