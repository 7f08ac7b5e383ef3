package testnats_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/internal/testnats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAStreamOutlivesARestart(t *testing.T) {
	t.Parallel()
	server := testnats.Start(t)
	url := server.URL()
	payload := make([]byte, 7<<20)

	js := connect(t, url)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "s", payload)
	require.NoError(t, err)

	server.Restart()
	require.Equal(t, url, server.URL())
	stream, err := connect(t, url).Stream(t.Context(), "S")
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)

	server.Stop()
	_, err = nats.Connect(url)
	require.Error(t, err)
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	return js
}
