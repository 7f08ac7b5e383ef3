package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

func TestGuardFindsNothingOnFreshStreams(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.NoError(t, w.Guard(t.Context()))
	require.NoError(t, w.EnsureStreams(t.Context()), "a second time")
	require.NoError(t, w.Guard(t.Context()))
}

func TestGuardNamesWhatSomeoneChanged(t *testing.T) {
	t.Parallel()
	w := setup(t)
	batches, dead := w.names.batches, w.names.deadLetters
	for name, c := range map[string]struct {
		stream string
		change func(*jetstream.StreamConfig)
		want   []string
	}{
		"age":         {batches, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, []string{"BATCHES", "max age"}},
		"discard":     {batches, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, []string{"BATCHES", "discard"}},
		"count":       {batches, func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, []string{"BATCHES", "max messages"}},
		"per subject": {batches, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 10 }, []string{"BATCHES", "per subject"}},
		"size":        {batches, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 10 }, []string{"BATCHES", "message size"}},
		"unlimited":   {batches, func(c *jetstream.StreamConfig) { c.MaxBytes = -1 }, []string{"BATCHES", "max bytes"}},
		"no ack":      {batches, func(c *jetstream.StreamConfig) { c.NoAck = true }, []string{"BATCHES", "acknowledge"}},
		"rollup":      {batches, func(c *jetstream.StreamConfig) { c.AllowRollup = true }, []string{"BATCHES", "rollup"}},
		"subjects":    {batches, func(c *jetstream.StreamConfig) { c.Subjects = []string{"x"} }, []string{"BATCHES", "subjects"}},
		"letters age": {dead, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, []string{"DEADLETTERS", "max age"}},
		"letters discard": {dead, func(c *jetstream.StreamConfig) {
			c.DiscardNewPerSubject, c.Discard = false, jetstream.DiscardOld
		}, []string{"DEADLETTERS", "discard", "full subject"}},
		"holds age":    {"KV_holds", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, []string{"KV_holds", "max age"}},
		"holds direct": {"KV_holds", func(c *jetstream.StreamConfig) { c.AllowDirect = true }, []string{"KV_holds", "last hold"}},
		"bucket age":   {"KV_identity", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, []string{"KV_identity", "max age"}},
	} {
		stream, err := w.js.Stream(t.Context(), c.stream)
		require.NoError(t, err)
		good := stream.CachedInfo().Config
		bad := good
		c.change(&bad)
		_, err = w.js.UpdateStream(t.Context(), bad)
		require.NoError(t, err, name)

		require.NoError(t, w.EnsureStreams(t.Context()))
		err = w.Guard(t.Context())
		require.Equal(t, fault.Internal, fault.ClassOf(err), name)
		for _, want := range c.want {
			require.ErrorContains(t, err, want, name)
		}
		_, err = w.js.UpdateStream(t.Context(), good)
		require.NoError(t, err)
		require.NoError(t, w.Guard(t.Context()))
	}
}

// What cannot be updated, someone can delete and make anew.
func TestGuardNamesMemoryStorageAndAWrongConsumer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.NoError(t, w.js.DeleteStream(t.Context(), w.names.batches))
	requireUnavailable(t, w.Guard(t.Context()))

	memory := w.batchesConfig()
	memory.Storage = jetstream.MemoryStorage
	_, err := w.js.CreateStream(t.Context(), memory)
	require.NoError(t, err)
	_, err = w.js.CreateConsumer(t.Context(), w.names.batches, jetstream.ConsumerConfig{
		Durable: w.names.consumer, AckPolicy: jetstream.AckAllPolicy, MaxDeliver: 5, AckWait: time.Second,
		MaxAckPending: 10, InactiveThreshold: time.Hour, FilterSubject: "pganalytics.batch.x", DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	require.NoError(t, err)
	err = w.Guard(t.Context())
	for _, want := range []string{
		"storage is Memory", "deliver policy", "filters", "ack policy", "max deliver is 5", "ack wait is 1s",
		"max ack pending is 10", "deleted after 1h0m0s",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestGuardNamesAServerThatTakesTooLittle(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.restart(natsserver.Config{MaxPayload: 1 << 20})
	err := w.Guard(t.Context())
	require.Equal(t, fault.Internal, fault.ClassOf(err))
	require.ErrorContains(t, err, "max_payload is 1048576, must be at least 8388608")

	cfg := w.cfg
	cfg.MinPayload = 1 << 20
	content := &world{t: t, cfg: cfg}
	require.NoError(t, content.connect().Guard(t.Context()))
}

func TestGuardWantsTheConfiguredReplicas(t *testing.T) {
	t.Parallel()
	w := setup(t)
	cfg := w.cfg
	cfg.Replicas = 3
	clustered := &world{t: t, cfg: cfg}
	require.ErrorContains(t, clustered.connect().Guard(t.Context()), "replicas are 1, must be at least 3")
}

func TestEnsureStreamsRaisesLimitsAndLowersNone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	larger := w.cfg
	larger.BatchesMaxBytes, larger.AckWait, larger.MaxAckPending = 2*w.cfg.BatchesMaxBytes, 7*time.Second, 77
	grown := &world{t: t, cfg: larger}
	grown.Bus = grown.connect()
	require.NoError(t, grown.EnsureStreams(t.Context()))
	require.NoError(t, grown.Guard(t.Context()))
	require.Equal(t, larger.BatchesMaxBytes, w.status().MaxBytes)

	require.NoError(t, w.EnsureStreams(t.Context()))
	require.Equal(t, larger.BatchesMaxBytes, w.status().MaxBytes)
	require.NoError(t, w.Guard(t.Context()))
}

// A command knows no more than the address; what would lose batches it sees all
// the same.
func TestGuardOfACommandAcceptsAnySettingsThatLoseNothing(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.AckWait, c.MaxAckPending = 7*time.Second, 77 })
	command, service := *w, *w
	command.cfg = Config{URL: w.url, AnySettings: true}
	service.cfg = Config{URL: w.url}
	command.Bus, service.Bus = command.connect(), service.connect()
	require.NoError(t, command.Guard(t.Context()))
	require.ErrorContains(t, service.Guard(t.Context()), "ack wait")
	require.ErrorContains(t, service.Guard(t.Context()), "max ack pending")

	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	bad := stream.CachedInfo().Config
	bad.MaxAge = time.Hour
	_, err = w.js.UpdateStream(t.Context(), bad)
	require.NoError(t, err)
	require.ErrorContains(t, command.Guard(t.Context()), "max age")
}
