// Package natsserver runs a NATS server with JetStream inside this process:
// for an installation that needs no cluster, and for tests. Every write is
// synced to disk before it is confirmed. It creates no streams, and the
// package knows nothing of what they hold.
package natsserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"
)

// Config of the server. Zero values take the defaults.
type Config struct {
	// StoreDir holds the streams. Required; it must survive the process, on a
	// disk that keeps what was synced.
	StoreDir string
	// Listen opens a TCP port. Defaults to false: only this process can
	// connect.
	Listen bool
	// Host to listen on. Defaults to 127.0.0.1.
	Host string
	// Port to listen on. Defaults to a free one.
	Port int
	// User and Password that every client must give, also in this process.
	// Defaults to none: whoever reaches the port may purge the streams.
	User, Password string
	// MaxPayload is the largest message in bytes. Defaults to 8 MiB.
	MaxPayload int32
	// MaxBytes is the sum in bytes of what the streams may hold. Defaults to
	// no limit but the disk, for tests: a disk that fills up below JetStream
	// breaks the streams until a restart.
	MaxBytes int64
	// StartTimeout bounds reading what the streams hold. Defaults to 1 min.
	StartTimeout time.Duration
	// Cluster has the server replicate with others. Defaults to none.
	Cluster Cluster
}

// Cluster is one server's place among those that replicate with each other.
// Nothing is encrypted between them and anybody may join, which is good enough
// on one host: for tests.
type Cluster struct {
	// Name of this server, unlike those of the others.
	Name string
	// Listen is the address, host:port, where this server meets the others;
	// empty for a server that stands alone.
	Listen string
	// Members are these addresses of all servers, this one included.
	Members []string
}

// serverName is that of a server that stands alone, and of a cluster.
const serverName = "pganalytics"

// MaxPayload is the default largest message in bytes.
const MaxPayload = 8 << 20

// diskShare is how much of the disk the streams may fill.
const diskShare = 0.7

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	if c.StoreDir == "" {
		errs = append(errs, errors.New("nats server: StoreDir is empty"))
	}
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("nats server: Port %d is not from 0 to 65535", c.Port))
	}
	if c.MaxPayload < 0 || c.MaxPayload > server.MAX_PAYLOAD_MAX_SIZE*8 {
		errs = append(errs, fmt.Errorf("nats server: MaxPayload %d is not from 0 to 64 MiB", c.MaxPayload))
	}
	if _, _, err := c.Cluster.address(); err != nil {
		errs = append(errs, fmt.Errorf("nats server: Cluster.Listen: %w", err))
	}
	if c.MaxBytes < 0 {
		errs = append(errs, fmt.Errorf("nats server: MaxBytes %d is negative", c.MaxBytes))
	}
	return errors.Join(errs...)
}

// Server is a running server.
type Server struct{ server *server.Server }

// Start returns a server that has read its streams and takes connections. It
// refuses a MaxBytes that the disk of StoreDir has no room for, see CheckDisk,
// and one below what its streams were made for.
func Start(cfg Config, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("make nats store directory: %w", err)
	}
	if err := CheckDisk(cfg.StoreDir, cfg.MaxBytes); err != nil {
		return nil, err
	}
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("make nats server: %w", err)
	}
	s.SetLoggerV2(logger{log}, false, false, false)
	s.Start()
	timeout := cfg.StartTimeout
	if timeout == 0 {
		timeout = time.Minute
	}
	if err := checkStarted(s, timeout, opts.JetStreamMaxStore); err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("start nats server: %w", err)
	}
	return &Server{server: s}, nil
}

func checkStarted(s *server.Server, timeout time.Duration, maxStore int64) error {
	if !s.ReadyForConnections(timeout) {
		return fmt.Errorf("not ready within %s", timeout)
	}
	if !s.JetStreamEnabled() {
		return errors.New("jetstream is not enabled, see the log")
	}
	return checkReserved(s, maxStore)
}

// checkReserved refuses a limit below what the streams may hold already. The
// server would start, and refuse writes once the streams hold that much, long
// before they are full by their own count, by which they are trimmed.
func checkReserved(s *server.Server, maxStore int64) error {
	_, reserved, err := s.JetStreamReservedResources()
	if err != nil {
		return err
	}
	if maxStore > 0 && reserved > maxStore {
		return fmt.Errorf("the streams were made to hold %d bytes and cannot be made smaller; %d are too few",
			reserved, maxStore)
	}
	return nil
}

func options(cfg Config) (*server.Options, error) {
	password := cfg.Password
	if password != "" {
		// The server warns of a password that it is given as it is. Ours is
		// random, so the cheapest hash is as good as any.
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			return nil, fmt.Errorf("hash nats password: %w", err)
		}
		password = string(hash)
	}
	o := &server.Options{
		ServerName: serverName,
		DontListen: !cfg.Listen,
		Host:       cfg.Host,
		Port:       cfg.Port,
		Username:   cfg.User,
		Password:   password,
		MaxPayload: cfg.MaxPayload,
		// An ingester has several fetches of 2 × max_payload under way on one
		// connection; the server cuts off a client with more than this waiting.
		MaxPending: 256 << 20,
		JetStream:  true,
		StoreDir:   cfg.StoreDir,
		SyncAlways: true,
		// Only what watches and orders keeps its state in memory.
		JetStreamMaxMemory:     64 << 20,
		DisableJetStreamBanner: true,
		NoSigs:                 true, // the process has its own
		NoLog:                  true, // SetLoggerV2 follows
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = MaxPayload
	}
	if cfg.MaxBytes > 0 {
		// Left to itself the server takes three quarters of what is free at
		// the moment, so that full streams would shrink it at each restart.
		// The tenth is for the buckets, which have no limit of their own.
		o.JetStreamMaxStore = cfg.MaxBytes + cfg.MaxBytes/10
	}
	return o, cfg.Cluster.join(o)
}

// address returns where the server meets the others, nothing if it stands
// alone.
func (c Cluster) address() (host string, port int, err error) {
	if c.Listen == "" {
		return "", 0, nil
	}
	address, err := net.ResolveTCPAddr("tcp", c.Listen)
	if err != nil {
		return "", 0, err
	}
	return address.IP.String(), address.Port, nil
}

func (c Cluster) join(o *server.Options) error {
	host, port, err := c.address()
	if err != nil || host == "" {
		return err
	}
	o.ServerName = c.Name
	o.Cluster = server.ClusterOpts{Name: serverName, Host: host, Port: port}
	for _, member := range c.Members {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: member})
	}
	return nil
}

// URL returns where the server listens, empty if it does not.
func (s *Server) URL() string {
	if s.server.Addr() == nil {
		return ""
	}
	return s.server.ClientURL()
}

// InProcessConn returns a connection that needs no port.
func (s *Server) InProcessConn() (net.Conn, error) { return s.server.InProcessConn() }

// Stop closes all connections and files, and returns when that is done.
func (s *Server) Stop() {
	s.server.Shutdown()
	s.server.WaitForShutdown()
}

// CheckDisk returns an error if streams of maxBytes bytes would fill more than
// 70 % of what is free for dir, counting what dir holds already as free. The
// rest is for the database or whatever else shares the disk, and so that the
// streams' own limit bites before the disk's does.
func CheckDisk(dir string, maxBytes int64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	used, err := bytesBelow(dir)
	if err != nil {
		return fmt.Errorf("measure %s: %w", dir, err)
	}
	free := int64(disk.Bavail)*int64(disk.Bsize) + used //nolint:unconvert // its type differs between systems
	if allowed := int64(diskShare * float64(free)); maxBytes > allowed {
		return fmt.Errorf("streams of %d bytes do not fit into %s: it has %d bytes free, of which they may take %d (70 %%)",
			maxBytes, dir, free, allowed)
	}
	return nil
}

func bytesBelow(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		sum += info.Size()
		return nil
	})
	return sum, err
}

// logger passes on what the server thinks is wrong.
type logger struct{ log *slog.Logger }

func (logger) Noticef(string, ...any) {}
func (logger) Debugf(string, ...any)  {}
func (logger) Tracef(string, ...any)  {}

func (l logger) Warnf(format string, args ...any) {
	l.log.Warn("nats server", "text", fmt.Sprintf(format, args...))
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("nats server", "text", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	l.log.Error("nats server gives up", "text", fmt.Sprintf(format, args...))
}
