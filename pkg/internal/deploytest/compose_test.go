package deploytest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
)

// faults returns what is wrong with a checkout.
func faults(t *testing.T, dir string) []string {
	t.Helper()
	project, err := load(dir)
	if err != nil {
		return []string{err.Error()}
	}
	c := &checker{project: project, dir: dir}
	for _, s := range project.Services { // before anything reads them
		c.mounts(s)
	}
	if len(c.found) > 0 {
		return c.found
	}
	c.host = newHost(t, project)
	for _, s := range project.Services {
		c.service(s)
	}
	c.secrets()
	c.volumes()
	c.dockerfile()
	c.database()
	if len(c.found) == 0 {
		c.commands(t)
		c.helped(t)
	}
	return c.found
}

func TestWhatIsDeployedNamesOnlyWhatExists(t *testing.T) {
	require.Empty(t, faults(t, checkout(t)))
}

// commands parses the services' commands and variables as the services do, and
// compares what they then do with what the compose file says.
func (c *checker) commands(t *testing.T) {
	t.Helper()
	c.host.writeFiles()
	makeKeys(t, c.host)
	for name, parse := range map[string]func(args []string) (service.Process, error){
		"authsvc": func(args []string) (service.Process, error) {
			var cfg service.Auth
			err := parsed(&cfg, args)
			return cfg.Process, err
		},
		"gateway": func(args []string) (service.Process, error) {
			var cfg service.Gateway
			err := parsed(&cfg, args)
			return cfg.Process, err
		},
		"ingester": func(args []string) (service.Process, error) {
			var cfg service.Ingester
			err := parsed(&cfg, args)
			return cfg.Process, err
		},
	} {
		t.Run("parse "+name, func(t *testing.T) {
			for key, value := range c.host.environment(name) {
				t.Setenv(key, value)
			}
			s := c.project.Services[name]
			args := c.host.command(name)
			c.check(args[0] == name, "%s: runs %s", name, args[0])
			process, err := parse(args[1:])
			c.check(err == nil, "%s: %v", name, err)
			if err != nil {
				return
			}
			c.check(strings.HasPrefix(probe(s), "http://"+process.AdminListen+"/"), "%s: health check asks %s, admin listens at %s", name, probe(s), process.AdminListen)
			c.check(s.StopGracePeriod != nil && time.Duration(*s.StopGracePeriod) > process.StopTimeout, "%s: is killed before it has stopped", name)
		})
	}
}

// helped runs the command lines of the other programs as far as their help,
// which comes after the flags were read.
func (c *checker) helped(t *testing.T) {
	t.Helper()
	for name, s := range c.project.Services {
		args := c.host.command(name)
		if !ours(s) || args[0] != "pganalytics" && args[0] != "collector" {
			continue
		}
		out, err := exec.CommandContext(t.Context(), filepath.Join(programs, args[0]), append(args[1:], "--help")...).CombinedOutput()
		c.check(err == nil, "%s: %s", name, out)
		if m := probes.FindString(probe(s)); m != "" {
			listener := strings.Trim(strings.TrimPrefix(m, "http:"), "/")
			c.check(strings.Contains(string(out), listener), "%s: no admin listener at %s", name, listener)
		}
	}
}

func parsed(cfg any, args []string) error {
	_, err := cmdline.Parse("test", "", cfg, args, io.Discard, io.Discard)
	return err
}

// makeKeys makes what the service pki does.
func makeKeys(t *testing.T, h *host) {
	t.Helper()
	volumes := filepath.Join(h.dir, "volumes")
	_, err := ca.Init(ca.Options{Dir: filepath.Join(volumes, "pki"), TrustDomain: "pganalytics", ServerNames: []string{"localhost"}})
	require.NoError(t, err)
	require.NoError(t, ca.CopyForVerifiers(filepath.Join(volumes, "pki"), filepath.Join(volumes, "pki-public")))
}

func TestAMistakeInWhatIsDeployedIsSeen(t *testing.T) {
	const compose = "docker-compose.yml"
	for _, mistake := range []struct{ file, from, to, want string }{
		{compose, "--collectors-tls-cert", "--collectors-tls-crt", "unknown flag"},
		{compose, "PGANALYTICS_NATS_BATCHES_MAX_BYTES", "PGANALYTICS_NATS_MAX_BYTES", "no such setting"},
		{compose, "${BATCHES_MAX_BYTES:-10737418240}", "${BATCHES_MAX_BYTES:-10GiB}", "expected a valid 64 bit int"},
		{compose, "${REPLAY_WINDOW:-72h}", "${REPLAY_WINDOW:-3d}", "unknown unit"},
		{compose, "/var/lib/pganalytics/pki/server.crt", "/var/lib/pganalytics/pki/server.pem", "server.pem: no such file"},
		{compose, "pki-public/root.pub", "pki-private/root.pub", "pki-private/root.pub is not mounted"},
		{compose, "./deploy/nats.conf", "./deploy/nats-server.conf", "no file"},
		{compose, "/var/lib/pganalytics/collector", "/var/lib/pganalytics/state", "the image has no directory"},
		{compose, "8444:8444", "8444:8443", "gateway: publishes port 8443"},
		{compose, "https://authsvc:8445", "https://authsvc:8446", "nobody listens at authsvc:8446"},
		{compose, "nats://nats:4222", "nats://stream:4222", "nobody listens at stream:4222"},
		{compose, "authsvc,gateway,localhost", "authsvc,localhost", "the certificate has no name gateway"},
		{compose, "networks: [database, stream]", "networks: [database]", "has no network with nats"},
		{compose, "127.0.0.1:9180", "127.0.0.1:9090", "admin listens at 127.0.0.1:9180"},
		{compose, "stop_grace_period: 60s", "stop_grace_period: 10s", "killed before it has stopped"},
		{compose, "${LISTEN_ADDRESS:-127.0.0.1}", "${LISTEN_ADDRESS:-0.0.0.0}", "beyond loopback"},
		{compose, "secrets: [collector_conninfo]", "secrets: [database_url]", "/run/secrets/collector_conninfo is not mounted"},
		{compose, "nats_gateway_password: {", "nats_api_password: {", "undefined secret"},
		{compose, "POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password", "POSTGRES_PASSWORD: swordfish", "stands in the compose file"},
		{compose, "timescaledb:2.19.3-pg17", "timescaledb:latest-pg17", "is not pinned"},
		{compose, "cap_drop: [ALL]", "cap_drop: [NET_RAW]", "has capabilities"},
		{compose, "read_only: true", "readonly: true", "readonly"},
		{compose, "GOMEMLIMIT: 448MiB", "GOMEMLIMIT: 640MiB", "not below the limit"},
		{compose, "timescaledb,pg_stat_statements", "timescaledb", "does not load pg_stat_statements"},
		{compose, "authsvc: {condition: service_healthy}", "authsvc: {condition: service_started}", "does not wait"},
		{compose, "env_file: [deploy/secrets/nats.env]", "env_file: [deploy/nats.env]", "nats.env"},
		{"Dockerfile", "alpine:3.24", "alpine", "is not pinned"},
		{"Dockerfile", "USER 65532:65532", "USER root", "run as root"},
		{compose, "--public=", "--publish=", "unknown flag"},
		{compose, "--state-dir=", "--state=", "unknown flag"},
		{compose, "127.0.0.1:9181", "127.0.0.1:9180", "collector: no admin listener at 127.0.0.1:9180"},
		{"deploy/nats.conf", "0.0.0.0:8222", "0.0.0.0:8223", "nobody listens at nats:8222"},
		{"deploy/collector.yaml", "/run/secrets/collector_conninfo", "/run/secrets/conninfo", "/run/secrets/conninfo is not mounted"},
		{"deploy/database.sql", "/run/secrets/database_password", "/run/secrets/password", "/run/secrets/password is not mounted"},
		{".dockerignore", "/deploy/secrets\n", "", "goes into the image"},
	} {
		t.Run(mistake.to, func(t *testing.T) {
			dir := checkout(t)
			change(t, dir, mistake.file, mistake.from, mistake.to)
			require.Contains(t, strings.Join(faults(t, dir), "\n"), mistake.want)
		})
	}
}

func TestHealthChecksAskForPathsThatAreServed(t *testing.T) {
	t.Parallel()
	project, err := load(checkout(t))
	require.NoError(t, err)
	admin, err := daemon.ListenAdmin(daemon.AdminConfig{Addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), daemon.NewRegistry(daemon.ThisBuild()))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- admin.Part().Run(ctx, func() {}) }()
	asked := 0
	for name, s := range project.Services {
		if !ours(s) || s.HealthCheck == nil {
			continue
		}
		asked++
		path := probes.ReplaceAllString(probe(s), "/")
		require.Equal(t, http.StatusOK, get(t, "http://"+admin.Addr().String()+path), name)
	}
	require.Positive(t, asked)
	cancel()
	require.NoError(t, <-done)
}

// get returns the status of an answer, 0 when there is none.
func get(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	require.NoError(t, err)
	res, err := client.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func TestSecretsAreMadeOnceAndDifferEverywhere(t *testing.T) {
	t.Parallel()
	one, other := checkout(t), checkout(t)
	secrets := func(dir string) map[string]string {
		all := map[string]string{}
		entries, err := os.ReadDir(filepath.Join(dir, "deploy", "secrets"))
		require.NoError(t, err)
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, "deploy", "secrets", e.Name()))
			require.NoError(t, err)
			all[e.Name()] = string(data)
		}
		return all
	}
	before, values := secrets(one), map[string]bool{}
	for name, value := range before {
		require.NotEqual(t, value, secrets(other)[name], name)
		require.False(t, values[value], "%s is another secret too", name)
		values[value] = true
	}
	makeSecrets(t, one)
	require.Equal(t, before, secrets(one))
	info, err := os.Stat(filepath.Join(one, "deploy", "secrets"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "others reach the files")
}

func TestMissingSecretsStopTheStart(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "deploy", "secrets")))
	_, err := load(dir)
	require.ErrorContains(t, err, "nats.env")
}
