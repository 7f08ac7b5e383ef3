package bus

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

var services = []string{"INIT", "AUTHSVC", "GATEWAY", "INGESTER"}

// deployed starts a server from the file that installations use. It sets the
// process's environment, so the test cannot run in parallel.
func deployed(t *testing.T) (login func(user string) *world) {
	t.Helper()
	t.Setenv("NATS_SERVER_NAME", "test")
	t.Setenv("NATS_MAX_FILE_STORE", "128MB")
	dir := t.TempDir()
	for _, name := range services {
		t.Setenv("NATS_"+name+"_PASSWORD", "secret-of-"+name)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("secret-of-"+name+"\n"), 0o600))
	}
	options, err := server.ProcessConfigFile("../../deploy/nats.conf")
	require.NoError(t, err)
	require.True(t, options.SyncAlways)
	options.Host, options.Port, options.HTTPPort = "127.0.0.1", server.RANDOM_PORT, 0
	options.StoreDir, options.NoSigs, options.NoLog = t.TempDir(), true, true
	s, err := server.NewServer(options)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(patience))

	users := map[string]string{"init": "INIT", "authsvc": "AUTHSVC", "gateway": "GATEWAY", "ingester": "INGESTER"}
	return func(user string) *world {
		w := &world{t: t, cfg: Config{
			URL: s.ClientURL(), User: user, PasswordFile: filepath.Join(dir, users[user]),
			BatchesMaxBytes: 64 << 20, DeadLettersMaxBytes: 32 << 20,
			RequestTimeout: 500 * time.Millisecond, ConfirmEvery: 100 * time.Millisecond,
		}}
		w.Bus = w.connect()
		return w
	}
}

// Each service can do its part of a batch's way, and nothing of the others'.
func TestDeployedServicesHaveTheRightsTheyNeedAndNoMore(t *testing.T) {
	login := deployed(t)
	ctx := t.Context()
	initial := login("init")
	require.NoError(t, initial.EnsureStreams(ctx))
	require.NoError(t, initial.EnsureStreams(ctx))
	authsvc, gateway, ingester := login("authsvc"), login("gateway"), login("ingester")
	for _, w := range []*world{initial, authsvc, gateway, ingester} {
		require.NoError(t, w.Guard(ctx))
		require.NoError(t, w.Ready(ctx))
	}

	require.NoError(t, authsvc.IdentityBucket().Put(ctx, "collector.1", []byte("v")))
	value, err := authsvc.IdentityBucket().Get(ctx, "collector.1")
	require.NoError(t, err)
	require.Equal(t, "v", string(value))
	for _, w := range []*world{authsvc, gateway} {
		m := w.follow()
		awaitConfirmed(t, m, map[string]string{"collector.1": "v"})
	}
	set := func([]byte) []byte { return []byte("v") }
	require.NoError(t, authsvc.ConfigBucket().Revise(ctx, "document.1", set))
	require.NoError(t, initial.ConfigBucket().Revise(ctx, "document.default", set))
	require.NoError(t, initial.ConfigBucket().Revise(ctx, "resend.1", set))
	require.NoError(t, gateway.ConfigBucket().Put(ctx, "state.1", []byte("v")))
	awaitConfirmed(t, gateway.followBucket(gateway.ConfigBucket()), map[string]string{
		"document.1": "v", "document.default": "v", "resend.1": "v", "state.1": "v",
	})
	state, err := initial.ConfigBucket().Get(ctx, "state.1")
	require.NoError(t, err)
	require.Equal(t, "v", string(state))

	gateway.publish(3, 100)
	c := ingester.consumer()
	got := ingester.fetch(c, 1)
	require.NoError(t, got[0].Extend())
	ingester.store(c, 2, 0)
	ingester.ackAll(got)
	ingester.awaitFloor(3)
	require.NoError(t, ingester.DeadLetters().Bury(ctx, batch.Letter{Payload: []byte("x")}))
	letters, err := ingester.DeadLetters().List(ctx, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, []uint64{1, 2, 3}, sequences(ingester.rest(ingester.reader(1, 3), 2, room)))
	newest, _, err := ingester.Newest(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 3}, sequences(ingester.rest(newest, 2, room)))
	head := initial.heads(nil, 0, time.Time{})[0]
	letter, err := initial.DeadLetters().Get(ctx, head.ID)
	require.NoError(t, err)
	overview, err := initial.Overview(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 3, overview.Messages)
	require.Equal(t, []uint64{1, 2, 3}, sequences(initial.rest(initial.reader(1, 3), 2, room)))
	exported := initial.take(initial.hold("export", 2, 3))
	require.NoError(t, initial.Holds().Release(ctx, exported))
	quarantine := gateway.Quarantine(1)
	require.NoError(t, quarantine.look(ctx))
	require.True(t, quarantine.Quarantined(uuid.Nil))
	hold := ingester.take(ingester.hold("a", 2, 3))
	require.Equal(t, []Hold{hold}, ingester.holds())
	hold.From = 3
	hold, err = ingester.Holds().Advance(ctx, hold)
	require.NoError(t, err)
	_, err = ingester.SequenceAt(ctx, hold.Since)
	require.NoError(t, err)
	require.NoError(t, ingester.Holds().Release(ctx, hold))
	hold = ingester.take(ingester.hold("a", 4, 4))
	gateway.publish(1, 100) // stays
	report, err := ingester.Trimmer(TrimConfig{ReplayWindow: aged}, answers).Trim(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 3, report.Purged())

	batches, err := gateway.js.Stream(ctx, "BATCHES")
	require.NoError(t, err)
	// The server tells the connection, not the request: that one gets no answer.
	denied := func(what string, do func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		require.Error(t, do(ctx), "%s is allowed", what)
	}
	thief := &Consumer{bus: gateway.Bus, next: "$JS.API.CONSUMER.MSG.NEXT.BATCHES.ingester"}
	changed := batches.CachedInfo().Config
	changed.MaxAge = time.Hour
	changedConsumer := ingester.consumerConfig()
	changedConsumer.MaxDeliver = 1
	for what, do := range map[string]func(context.Context) error{
		"gateway fetches": func(ctx context.Context) error {
			_, err := thief.Fetch(ctx, 1, room, time.Millisecond)
			return err
		},
		"init fetches": func(ctx context.Context) error {
			_, err := (&Consumer{bus: initial.Bus, next: thief.next}).Fetch(ctx, 1, room, time.Millisecond)
			return err
		},
		"gateway deletes a letter":   func(ctx context.Context) error { return gateway.DeadLetters().Delete(ctx, letter) },
		"ingester deletes a letter":  func(ctx context.Context) error { return ingester.DeadLetters().Delete(ctx, letter) },
		"gateway purges":             func(ctx context.Context) error { return batches.Purge(ctx) },
		"gateway deletes a message":  func(ctx context.Context) error { return batches.DeleteMsg(ctx, 4) },
		"gateway deletes the stream": func(ctx context.Context) error { return gateway.js.DeleteStream(ctx, "BATCHES") },
		"gateway deletes the consumer": func(ctx context.Context) error {
			return gateway.js.DeleteConsumer(ctx, "BATCHES", "ingester")
		},
		"gateway changes the stream": func(ctx context.Context) error {
			_, err := gateway.js.UpdateStream(ctx, changed)
			return err
		},
		"gateway writes the bucket": func(ctx context.Context) error {
			return gateway.IdentityBucket().Put(ctx, "collector.2", nil)
		},
		"gateway writes a configuration": func(ctx context.Context) error {
			return gateway.ConfigBucket().Put(ctx, "document.default", nil)
		},
		"gateway asks to resend": func(ctx context.Context) error { return gateway.ConfigBucket().Put(ctx, "resend.1", nil) },
		"authsvc asks to resend": func(ctx context.Context) error { return authsvc.ConfigBucket().Put(ctx, "resend.1", nil) },
		"ingester writes a configuration": func(ctx context.Context) error {
			return ingester.ConfigBucket().Put(ctx, "document.default", nil)
		},
		"gateway deletes from the bucket": func(ctx context.Context) error {
			return gateway.IdentityBucket().Delete(ctx, "collector.1")
		},
		"gateway deletes the bucket": func(ctx context.Context) error { return gateway.js.DeleteKeyValue(ctx, "identity") },
		"gateway buries": func(ctx context.Context) error {
			return gateway.DeadLetters().Bury(ctx, batch.Letter{Payload: []byte("y")})
		},
		"gateway reads": func(ctx context.Context) error {
			r, err := gateway.Reader(ctx, 1, 4)
			if err == nil {
				_, err = r.Next(ctx, 1, room)
			}
			return err
		},
		"ingester changes the consumer": func(ctx context.Context) error {
			_, err := ingester.js.UpdateConsumer(ctx, "BATCHES", changedConsumer)
			return err
		},
		"ingester deletes the consumer": func(ctx context.Context) error {
			return ingester.js.DeleteConsumer(ctx, "BATCHES", "ingester")
		},
		"gateway holds": func(ctx context.Context) error {
			_, err := gateway.Holds().Take(ctx, hold)
			return err
		},
		"gateway releases":           func(ctx context.Context) error { return gateway.Holds().Release(ctx, hold) },
		"authsvc releases":           func(ctx context.Context) error { return authsvc.Holds().Release(ctx, hold) },
		"ingester deletes the holds": func(ctx context.Context) error { return ingester.js.DeleteKeyValue(ctx, "holds") },
		"ingester writes the bucket": func(ctx context.Context) error {
			return ingester.IdentityBucket().Put(ctx, "collector.2", nil)
		},
		"ingester publishes": func(ctx context.Context) error {
			_, err := ingester.Publisher().Publish(ctx, newBatch(1))
			return err
		},
		"ingester deletes the stream": func(ctx context.Context) error { return ingester.js.DeleteStream(ctx, "BATCHES") },
		"authsvc publishes": func(ctx context.Context) error {
			_, err := authsvc.Publisher().Publish(ctx, newBatch(1))
			return err
		},
		"authsvc fetches": func(ctx context.Context) error {
			_, err := (&Consumer{bus: authsvc.Bus, next: thief.next}).Fetch(ctx, 1, room, time.Millisecond)
			return err
		},
		"init deletes the stream": func(ctx context.Context) error { return initial.js.DeleteStream(ctx, "BATCHES") },
	} {
		denied(what, do)
	}

	sub, err := gateway.nc.SubscribeSync("_INBOX.ingester.>")
	if err == nil { // the server refuses later
		_, err = sub.NextMsg(100 * time.Millisecond)
	}
	require.Error(t, err, "gateway listens to the ingester's answers")
	require.ErrorContains(t, gateway.nc.LastError(), "_INBOX.ingester")

	require.NoError(t, initial.DeadLetters().Delete(ctx, letter))
	require.Empty(t, initial.heads(&letter.CollectorID, 0, time.Time{}))
	again := newBatch(10)
	payload, err := again.Marshal()
	require.NoError(t, err)
	_, err = initial.Publisher().Republish(ctx, again.CollectorID, payload)
	require.NoError(t, err)
	found := 0
	require.NoError(t, initial.OfCollector(ctx, again.CollectorID, time.Now().Add(-time.Hour), func(batch.Delivery) error { found++; return nil }))
	require.Equal(t, 1, found)

	s := authsvc.status()
	require.EqualValues(t, 2, s.Messages)
	require.EqualValues(t, 2, s.Pending)
	require.Zero(t, s.DeadLetters)
	require.NoError(t, gateway.Guard(ctx))
	value, err = authsvc.IdentityBucket().Get(ctx, "collector.1")
	require.NoError(t, err)
	require.Equal(t, "v", string(value))
}

func TestDeployedServerRefusesAWrongPassword(t *testing.T) {
	login := deployed(t)
	w := login("gateway")
	cfg := w.cfg
	require.NoError(t, os.WriteFile(cfg.PasswordFile, []byte("wrong"), 0o600))
	_, err := Connect(t.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorContains(t, err, `as "gateway"`)
	require.NotContains(t, err.Error(), "wrong")
}

func TestDeployedServerWantsEveryPassword(t *testing.T) {
	deployed(t)
	require.NoError(t, os.Unsetenv("NATS_GATEWAY_PASSWORD"))
	_, err := server.ProcessConfigFile("../../deploy/nats.conf")
	require.ErrorContains(t, err, "NATS_GATEWAY_PASSWORD")
}
