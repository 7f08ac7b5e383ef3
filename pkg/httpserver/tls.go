package httpserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// UserTLS returns the TLS configuration of a listener for users and senders:
// TLS 1.2 or later, no client certificate.
func UserTLS(certificate *Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: certificate.get,
	}
}

// CollectorTLS returns the TLS configuration of a listener for collectors:
// TLS 1.3 and a client certificate that one of the authorities in roots()
// issued. roots is asked at each handshake, so that an authority can be
// replaced while the listener runs. Session tickets are off, so each connection
// presents its certificate anew.
//
// expiredGrace is how long ago a certificate may have expired and still open a
// connection, for the renewal after an outage. Whoever serves a request must
// check the certificate's NotAfter for it; a handshake covers no more than the
// beginning of a connection anyway. The verified chains of the connection state
// are empty: use the peer certificates.
func CollectorTLS(certificate *Certificate, roots func() *x509.CertPool, expiredGrace time.Duration) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		GetCertificate:         certificate.get,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection does the rest, with the grace
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyClient(state.PeerCertificates, roots(), time.Now(), expiredGrace)
		},
	}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = roots() // only a hint to clients that hold several certificates
		return c, nil
	}
	return outer
}

// verifyClient checks the chain as of now, or, for a leaf that expired within
// the grace, as of its last moment.
func verifyClient(chain []*x509.Certificate, roots *x509.CertPool, now time.Time, grace time.Duration) error {
	if len(chain) == 0 {
		return errors.New("no client certificate")
	}
	if roots == nil { // x509 would take the system's authorities instead
		return errors.New("verify client certificate: no authority is known")
	}
	leaf := chain[0]
	at := now
	if now.After(leaf.NotAfter) && now.Sub(leaf.NotAfter) <= grace {
		at = leaf.NotAfter
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("verify client certificate: %w", err)
	}
	return nil
}

// checkEvery is how often the files are looked at, at most: a handshake costs
// far more than the two stats.
const checkEvery = time.Second

// Certificate is a server certificate from two PEM files. When the files have
// changed, handshakes use the new content without a restart; content that does
// not load is logged, and the former certificate stays in use.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	checked time.Time
	stamp   [2]fileStamp
	current *tls.Certificate
}

// fileStamp tells two contents of a file apart.
type fileStamp struct {
	modified time.Time
	size     int64
}

// LoadCertificate reads the files. The key must belong to the certificate.
func LoadCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.reload(); err != nil {
		return nil, fmt.Errorf("load server certificate: %w", err)
	}
	c.checked = time.Now()
	return c, nil
}

func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= checkEvery {
		c.checked = now
		before := c.stamp
		err := c.reload()
		switch {
		case err != nil && c.stamp != before: // once per change of the files
			c.log.Error("server certificate not reloaded", "err", err)
		case err == nil && c.stamp != before:
			c.log.Info("server certificate reloaded", "not_after", c.current.Leaf.NotAfter)
		}
	}
	return c.current, nil
}

// reload loads the files if they differ from those looked at last.
func (c *Certificate) reload() error {
	var stamp [2]fileStamp
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			c.stamp = [2]fileStamp{}
			return err
		}
		stamp[i] = fileStamp{info.ModTime(), info.Size()}
	}
	if stamp == c.stamp {
		return nil
	}
	c.stamp = stamp
	loaded, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.current = &loaded
	return nil
}
