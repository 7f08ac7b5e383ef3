package service_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/service"
)

// ingesterWith returns an ingester's configuration for the line.
func (l *line) ingesterWith(args ...string) (service.Ingester, error) {
	l.t.Helper()
	url := filepath.Join(l.t.TempDir(), "url")
	require.NoError(l.t, os.WriteFile(url, []byte(l.url), 0o600))
	args = append([]string{"--nats-url", l.nats.URL(), "--database-url-file", url, "--admin-listen", "127.0.0.1:0"}, args...)
	var cfg service.Ingester
	_, err := cmdline.Parse("ingester", "", &cfg, args, io.Discard, io.Discard)
	return cfg, err
}

func TestAnIngesterWhoseFetchesCannotHoldTheLargestMessageDoesNotStart(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	cfg, err := l.ingesterWith("--fetch-bytes", "1000000")
	require.NoError(t, err)
	err = service.RunIngester(t.Context(), cfg, io.Discard, func(service.Endpoints) { t.Error("it says that it is ready") })
	require.ErrorContains(t, err, "fetch-bytes: 1000000")
}

func TestLoadersNeedSessions(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	_, err := l.ingesterWith("--loaders", "8", "--database-max-conns", "11")
	require.ErrorContains(t, err, "database-max-conns: 11")
	_, err = l.ingesterWith("--loaders", "8", "--database-max-conns", "12")
	require.NoError(t, err)
}
