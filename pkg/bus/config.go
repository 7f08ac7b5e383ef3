package bus

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"
)

// Headroom is what a message may need beyond an encoded batch: subject,
// reply, and the headers that a dead letter adds. An encoded batch is at most
// MaxPayload − Headroom bytes, so that whatever was accepted can also be
// buried.
const Headroom = 64 << 10

// Defaults of Config.
const (
	DefaultBatchesMaxBytes     = 10 << 30
	DefaultDeadLettersMaxBytes = 1 << 30
	DefaultDuplicateWindow     = 2 * time.Minute // JetStream's own default
	DefaultAckWait             = time.Minute
	DefaultMaxAckPending       = 65_536
	DefaultMinPayload          = 8 << 20
	DefaultRequestTimeout      = 5 * time.Second
	DefaultConfirmEvery        = 2 * time.Second
)

// Config says how to reach NATS and what the streams must look like. Zero
// values take the defaults.
type Config struct {
	// URL of the servers, comma separated. Required without InProcess.
	URL string
	// InProcess, if set, is the server in this process to connect to; URL is
	// then ignored. Defaults to none.
	InProcess interface{ InProcessConn() (net.Conn, error) }
	// Name of this client in the server's monitoring. Defaults to "pganalytics".
	Name string
	// User to log in as. Its inboxes are _INBOX.<user>.>, so that the server
	// can keep one service from reading the answers to another. Defaults to
	// none.
	User string
	// PasswordFile holds the user's password; it is read at every connect, so
	// that a new password needs no restart. Required with User.
	PasswordFile string
	// CAFile holds the PEM certificates that a tls:// server is checked
	// against. Defaults to the system's.
	CAFile string
	// Prefix of all stream, bucket and subject names, so that several
	// installations can share a server. Defaults to none.
	Prefix string

	// Replicas of every stream. Defaults to 1; with three servers it should be
	// 3, or the loss of one server's disk loses what it alone held.
	Replicas int
	// BatchesMaxBytes is the size in bytes at which BATCHES refuses more.
	// Defaults to 10 GiB. It must bite before the disk is full: a full disk
	// breaks a stream until the server restarts.
	BatchesMaxBytes int64
	// DeadLettersMaxBytes is the same for DEADLETTERS. Defaults to 1 GiB. Once
	// full, batches that cannot be stored wait on the stream.
	DeadLettersMaxBytes int64
	// DuplicateWindow in which the server itself recognises a repeated
	// message. Defaults to 2 min. It only saves work: "once" is decided in the
	// database.
	DuplicateWindow time.Duration
	// AckWait until a delivered message that was neither acked nor extended is
	// handed out again. Defaults to 1 min. Shorter than a slow load, every
	// load happens twice.
	AckWait time.Duration
	// MaxAckPending is how many messages may be out unacked, over all
	// ingesters. Defaults to 65,536; at least 4 × ingesters × loaders ×
	// messages in a load. Too small and ingesters starve each other.
	MaxAckPending int

	// AnySettings lets Guard accept any AckWait and MaxAckPending: for a command,
	// which need not be told what the services were. Defaults to false.
	AnySettings bool

	// MinPayload is the least max_payload in bytes that the servers must have.
	// Defaults to 8 MiB. With less, larger batches are refused for good and
	// their senders give them up.
	MinPayload int64

	// RequestTimeout ends the wait for one answer of the server, that to a
	// publish included, if the caller's context does not end earlier. Defaults
	// to 5 s. After it the outcome is unknown.
	RequestTimeout time.Duration
	// ConfirmEvery is the interval in which a bucket's follower asks whether
	// it is up to date, and the quarantine whether letters came or went.
	// Defaults to 2 s; it bounds how late they notice a recreated bucket, or a
	// collector that has reached its quota.
	ConfirmEvery time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.Name, "pganalytics")
	setDefault(&c.Replicas, 1)
	setDefault(&c.BatchesMaxBytes, DefaultBatchesMaxBytes)
	setDefault(&c.DeadLettersMaxBytes, DefaultDeadLettersMaxBytes)
	setDefault(&c.DuplicateWindow, DefaultDuplicateWindow)
	setDefault(&c.AckWait, DefaultAckWait)
	setDefault(&c.MaxAckPending, DefaultMaxAckPending)
	setDefault(&c.MinPayload, DefaultMinPayload)
	setDefault(&c.RequestTimeout, DefaultRequestTimeout)
	setDefault(&c.ConfirmEvery, DefaultConfirmEvery)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// prefixes go into stream names, where JetStream allows no dots.
var prefixPattern = regexp.MustCompile(`^[A-Za-z0-9-]*$`)

// userPattern keeps a user's name a single token of its inbox subject.
var userPattern = regexp.MustCompile(`^[A-Za-z0-9_-]*$`)

// Validate reports all faults at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("bus: "+format, args...))
		}
	}
	check(c.URL != "" || c.InProcess != nil, "URL is empty and no server runs in this process")
	check(userPattern.MatchString(c.User), "User %q has other characters than letters, digits, _ and -", c.User)
	check((c.User == "") == (c.PasswordFile == ""), "User %q and PasswordFile %q belong together", c.User, c.PasswordFile)
	check(prefixPattern.MatchString(c.Prefix), "Prefix %q has other characters than letters, digits and -", c.Prefix)
	check(c.Replicas >= 1 && c.Replicas <= 5, "Replicas %d is not from 1 to 5", c.Replicas)
	check(c.BatchesMaxBytes > 0, "BatchesMaxBytes %d is not positive", c.BatchesMaxBytes)
	check(c.DeadLettersMaxBytes > 0, "DeadLettersMaxBytes %d is not positive", c.DeadLettersMaxBytes)
	check(c.DuplicateWindow >= 100*time.Millisecond, "DuplicateWindow %s is shorter than the server's least, 100ms", c.DuplicateWindow)
	check(c.AckWait > 0, "AckWait %s is not positive", c.AckWait)
	check(c.MaxAckPending > 0, "MaxAckPending %d is not positive", c.MaxAckPending)
	check(c.MinPayload > Headroom, "MinPayload %d leaves a batch nothing beside the headroom of %d", c.MinPayload, Headroom)
	check(c.RequestTimeout > 0, "RequestTimeout %s is not positive", c.RequestTimeout)
	check(c.ConfirmEvery > 0, "ConfirmEvery %s is not positive", c.ConfirmEvery)
	return errors.Join(errs...)
}

// names holds what the streams and subjects are called on the server.
type names struct {
	batches     string
	deadLetters string
	identity    string // bucket
	config      string // bucket
	holds       string // bucket
	consumer    string
	batch       string // subject without the collector
	dead        string // subject without collector, batch and digest
}

func (c Config) names() names {
	stream, subject := "", ""
	if c.Prefix != "" {
		stream, subject = c.Prefix+"_", c.Prefix+"."
	}
	return names{
		batches:     stream + "BATCHES",
		deadLetters: stream + "DEADLETTERS",
		identity:    stream + "identity",
		config:      stream + "config",
		holds:       stream + "holds",
		consumer:    "ingester",
		batch:       subject + "pganalytics.batch.",
		dead:        subject + "pganalytics.dead.",
	}
}
