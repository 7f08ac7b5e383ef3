package natsserver

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return s
}

func connect(t *testing.T, url string, options ...nats.Option) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, options...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	require.EqualValues(t, MaxPayload, nc.MaxPayload())
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

func TestWithoutListenOnlyThisProcessCanConnect(t *testing.T) {
	t.Parallel()
	s := start(t, Config{StoreDir: t.TempDir()})
	require.Empty(t, s.URL())
	js := connect(t, "", nats.InProcessServer(s))
	_, err := js.AccountInfo(t.Context())
	require.NoError(t, err)
}

func TestStreamsSurviveTheServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, Config{StoreDir: dir, Listen: true})
	js := connect(t, s.URL())
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "s", make([]byte, MaxPayload-1000))
	require.NoError(t, err)
	s.Stop()

	again := start(t, Config{StoreDir: dir, Listen: true})
	stream, err := connect(t, again.URL()).Stream(t.Context(), "S")
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)
}

func TestEveryWriteIsSynced(t *testing.T) {
	t.Parallel()
	o, err := options(Config{})
	require.NoError(t, err)
	require.True(t, o.SyncAlways)
}

func TestStreamsMayNotFillTheDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := Start(Config{StoreDir: dir, MaxBytes: math.MaxInt64 / 2}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, dir)
	require.ErrorContains(t, err, "bytes free")
	require.NoError(t, CheckDisk(dir, 1<<20))
}

func TestWhatTheStreamsHoldCountsAsFree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "block"), make([]byte, 1000), 0o600))
	used, err := bytesBelow(dir)
	require.NoError(t, err)
	require.EqualValues(t, 1000, used)
}

func TestMaxBytesBoundsAllStreamsTogether(t *testing.T) {
	t.Parallel()
	s := start(t, Config{StoreDir: t.TempDir(), MaxBytes: 10 << 20})
	js := connect(t, "", nats.InProcessServer(s))
	cfg := jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage, MaxBytes: 10 << 20}
	_, err := js.CreateStream(t.Context(), cfg)
	require.NoError(t, err)
	cfg.Name, cfg.Subjects = "T", []string{"t"}
	_, err = js.CreateStream(t.Context(), cfg)
	require.Error(t, err)
}

func TestALimitBelowThatOfTheStreamsIsRefusedAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, Config{StoreDir: dir, MaxBytes: 10 << 20})
	js := connect(t, "", nats.InProcessServer(s))
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage, MaxBytes: 10 << 20})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "s", make([]byte, 2<<20))
	require.NoError(t, err)
	s.Stop()

	_, err = Start(Config{StoreDir: dir, MaxBytes: 1 << 20}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "10485760")
	again := start(t, Config{StoreDir: dir, MaxBytes: 10 << 20})
	stream, err := connect(t, "", nats.InProcessServer(again)).Stream(t.Context(), "S")
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)
}

func TestConfigNamesAllFaults(t *testing.T) {
	t.Parallel()
	err := Config{Port: -2, MaxPayload: -1, MaxBytes: -1, Cluster: Cluster{Listen: "nowhere"}}.Validate()
	for _, name := range []string{"StoreDir", "Port", "MaxPayload", "MaxBytes", "Cluster.Listen"} {
		require.ErrorContains(t, err, name)
	}
}

func TestOnlyWhatIsWrongIsLogged(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s, err := Start(Config{StoreDir: t.TempDir()}, slog.New(slog.NewTextHandler(&out, nil)))
	require.NoError(t, err)
	s.Stop()
	require.Empty(t, out.String())
	l := logger{slog.New(slog.NewTextHandler(&out, nil))}
	l.Noticef("no %d", 1)
	l.Warnf("yes %d", 2)
	require.Contains(t, out.String(), `text="yes 2"`)
	require.NotContains(t, out.String(), "no 1")
}

func TestAStoppedServerTakesNoConnection(t *testing.T) {
	t.Parallel()
	s, err := Start(Config{StoreDir: t.TempDir(), Listen: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	url := s.URL()
	s.Stop()
	_, err = nats.Connect(url)
	require.ErrorIs(t, err, nats.ErrNoServers)
}
