package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Client talks to the backend as one collector. Its methods may be called
// concurrently.
type Client struct {
	stateDir string
	metrics  *metrics
	next     *next

	mu        sync.Mutex
	id        *Identity
	http      *http.Client
	hangUp    func()
	token     string
	tokenGood time.Time // until when it is used, collector's clock
	jitter    float64   // of the current certificate's renewal
	trouble   *Trouble  // why the last renewal failed; what it points to never changes
}

// NewClient makes the client of an identity that lies in stateDir.
func NewClient(id *Identity, stateDir string, reg prometheus.Registerer) *Client {
	c := &Client{stateDir: stateDir, metrics: newMetrics(reg), next: newNext()}
	c.use(id)
	return c
}

// Close ends idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangUp()
}

// use makes id the identity of all further requests. A token is bound to the
// certificate, so it goes with it.
func (c *Client) use(id *Identity) {
	if c.hangUp != nil {
		c.hangUp()
	}
	c.id = id
	c.http, c.hangUp = newClient(newTransport(id.ServerCAs, &id.Certificate))
	c.token = ""
	c.jitter = rand.Float64()
	c.metrics.certificateExpiry.Set(float64(id.Certificate.Leaf.NotAfter.Unix()))
}

// RenewAt returns when the certificate is due to be renewed.
func (c *Client) RenewAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id.renewAt(c.jitter)
}

// Renew gets a certificate for a new key. The old one is kept until the new
// one is on disk. The key is on disk before it is shown: if the answer is
// lost, even with the process, the same key is sent again, and the backend
// then repeats its answer. A third key would look like a copied identity.
func (c *Client) Renew(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.renew(ctx)
	c.metrics.renewal(err)
	c.renewed(err)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	return nil
}

func (c *Client) renew(ctx context.Context) error {
	if len(c.id.nextKey) == 0 {
		key, err := newKey()
		if err != nil {
			return err
		}
		pending := c.id.clone()
		pending.nextKey = key
		if err := pending.save(c.stateDir); err != nil {
			return err
		}
		c.id = pending
	}
	csr, err := signingRequest(c.id.Name, c.id.nextKey)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"csr": string(csr)})
	if err != nil {
		return err
	}
	text, err := do(ctx, c.http, request{method: http.MethodPost, url: at(c.id.TokenURL, "collectors/renew"), body: body}, http.StatusOK)
	if err != nil {
		return err
	}
	var answer struct {
		Certificate string `json:"certificate"`
		CA          string `json:"ca"`
	}
	if err := decode(text, &answer); err != nil {
		return err
	}
	next := c.id.clone()
	ca := []byte(answer.CA)
	if len(ca) == 0 {
		ca = encodeCertificates(c.id.ServerCAs)
	}
	if err := next.setCredentials([]byte(answer.Certificate), c.id.nextKey, ca); err != nil {
		return err
	}
	next.nextKey = nil
	if err := next.save(c.stateDir); err != nil {
		return err
	}
	c.use(next)
	return nil
}

// tokenMargin is how long before its end a token is replaced: more than a
// push takes, and some seconds of clocks that differ.
const tokenMargin = time.Minute

// credentials returns a client and a token that belong together. With stale
// set, a token other than that one is fetched.
func (c *Client) credentials(ctx context.Context, stale string) (*http.Client, string, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == "" || c.token == stale || !time.Now().Before(c.tokenGood) {
		if err := c.fetchToken(ctx); err != nil {
			return nil, "", "", fmt.Errorf("fetch token: %w", err)
		}
	}
	return c.http, c.id.CollectorURL, c.token, nil
}

func (c *Client) fetchToken(ctx context.Context) error {
	asked := time.Now()
	text, err := do(ctx, c.http, request{method: http.MethodPost, url: at(c.id.TokenURL, "collectors/token"), body: []byte("{}")}, http.StatusOK)
	if err != nil {
		return err
	}
	var answer struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	if err := decode(text, &answer); err != nil {
		return err
	}
	if answer.Token == "" {
		return errors.New("answer has no token")
	}
	// A token whose end seems near or past is used at least for a little
	// while: it is more likely that the clocks differ.
	c.token, c.tokenGood = answer.Token, answer.ExpiresAt.Add(-tokenMargin)
	if least := asked.Add(tokenMargin); c.tokenGood.Before(least) {
		c.tokenGood = least
	}
	return nil
}
