package testnats

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/internal/testnet"
)

// Cluster is three servers of one test that replicate with each other. Each is a process of its own, so that it can be
// killed: a server that is stopped hands its streams over to the others first.
type Cluster struct {
	tb      testing.TB
	members map[string]*member
}

type member struct {
	cfg     natsserver.Config
	url     string
	process *exec.Cmd
}

// configVariable holds the configuration of the server that a process is to be.
const configVariable = "TESTNATS_SERVER"

// Member runs the server that this process was started for and reports whether it was started for one. TestMain of a
// package that starts a cluster calls it first.
func Member() bool {
	text, ok := os.LookupEnv(configVariable)
	if !ok {
		return false
	}
	var cfg natsserver.Config
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		var srv *natsserver.Server
		if srv, err = natsserver.Start(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))); err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin) // until the test's process ends, however it does
			srv.Stop()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// StartCluster starts three servers, which end when the test ends, and waits until they take a stream of three replicas.
func StartCluster(tb testing.TB) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, members: map[string]*member{}}
	var addresses []string
	for range 3 {
		addresses = append(addresses, testnet.FreeAddress(tb))
	}
	for i, address := range addresses {
		name := fmt.Sprintf("n%d", i+1)
		clients := testnet.FreeAddress(tb)
		m := &member{url: "nats://" + clients, cfg: natsserver.Config{
			StoreDir: filepath.Join(tb.TempDir(), name), Listen: true, Port: port(tb, "nats://"+clients),
			Cluster: natsserver.Cluster{Name: name, Listen: address, Members: addresses},
		}}
		c.members[name] = m
		tb.Cleanup(m.kill)
		c.Start(name)
	}
	c.ask("takes a stream", func(ctx context.Context, js jetstream.JetStream) bool {
		const name = "TESTNATS"
		_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: name, Replicas: 3})
		return err == nil && js.DeleteStream(ctx, name) == nil
	})
	return c
}

// URL is the clients' addresses of all three.
func (c *Cluster) URL() string {
	var urls []string
	for _, m := range c.members {
		urls = append(urls, m.url)
	}
	return strings.Join(urls, ",")
}

// Kill ends a server without a warning to itself or the others.
func (c *Cluster) Kill(name string) { c.members[name].kill() }

func (m *member) kill() {
	if m.process != nil {
		_ = m.process.Process.Kill() // the only error is that it has ended, and
		_ = m.process.Wait()         // this one says that it was killed
		m.process = nil
	}
}

// Start starts a server, for the first time or again, on the folder and the addresses that it had.
func (c *Cluster) Start(name string) {
	c.tb.Helper()
	m := c.members[name]
	text, err := json.Marshal(m.cfg)
	if err != nil {
		c.tb.Fatalf("testnats: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), configVariable+"="+string(text))
	if _, err = cmd.StdinPipe(); err == nil { // open for as long as this process lives
		err = cmd.Start()
	}
	if err != nil {
		c.tb.Fatalf("testnats: %v", err)
	}
	m.process = cmd
}

// Leader waits until the stream has a leader and returns its name.
func (c *Cluster) Leader(stream string) string {
	c.tb.Helper()
	var leader string
	c.ask("has a leader of "+stream, func(ctx context.Context, js jetstream.JetStream) bool {
		s, err := js.Stream(ctx, stream)
		if err == nil {
			leader = s.CachedInfo().Cluster.Leader
		}
		return leader != ""
	})
	return leader
}

// Others returns the names of all servers but one.
func (c *Cluster) Others(name string) []string {
	var others []string
	for other := range c.members {
		if other != name {
			others = append(others, other)
		}
	}
	return others
}

// patience bounds every wait for the servers. An election takes up to 10 s.
const patience = 2 * time.Minute

// ask asks until the answer is yes.
func (c *Cluster) ask(question string, yes func(context.Context, jetstream.JetStream) bool) {
	c.tb.Helper()
	nc, err := nats.Connect(c.URL(), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	if err != nil {
		c.tb.Fatalf("testnats: %v", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		c.tb.Fatalf("testnats: %v", err)
	}
	poll := func() bool {
		ctx, cancel := context.WithTimeout(c.tb.Context(), 5*time.Second)
		defer cancel()
		return yes(ctx, js)
	}
	for deadline := time.Now().Add(patience); !poll(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.tb.Fatalf("testnats: no server %s after %s", question, patience)
		}
	}
}
