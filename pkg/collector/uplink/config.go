package uplink

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/policy/pulled"
)

// config asks for this collector's configuration unless it is that of the tag,
// and tells the state. It returns nothing if it is.
func (c *Client) config(ctx context.Context, tag *string, s pulled.State) ([]byte, error) {
	text, token, err := c.configOnce(ctx, tag, s, "")
	if p, ok := errors.AsType[*problem](err); ok && p.Status == http.StatusUnauthorized && token != "" {
		text, _, err = c.configOnce(ctx, tag, s, token)
	}
	return text, err
}

// configTimeout is longer than a gateway takes to write the state down.
const configTimeout = 30 * time.Second

func (c *Client) configOnce(ctx context.Context, tag *string, s pulled.State, stale string) (text []byte, token string, err error) {
	ctx, cancel := context.WithTimeout(ctx, configTimeout)
	defer cancel()
	client, base, token, err := c.credentials(ctx, stale)
	if err != nil {
		return nil, "", err
	}
	text, err = do(ctx, client, request{
		method: http.MethodGet, url: at(base, "config/"+c.collectorID().String()) + "?" + said(s), token: token, tag: tag,
	}, http.StatusOK, http.StatusNotModified)
	return text, token, err
}

func said(s pulled.State) string {
	values := url.Values{"applied": {strconv.FormatInt(s.Applied, 10)}}
	if s.Refused != 0 {
		values.Set("refused", strconv.FormatInt(s.Refused, 10))
	}
	if s.Detail != "" {
		values.Set("detail", s.Detail)
	}
	if s.Resent != nil {
		values.Set("resent", s.Resent.ID.String())
		values.Set("found", strconv.Itoa(s.Resent.Found))
		values.Set("missing", strconv.Itoa(s.Resent.Missing))
	}
	return values.Encode()
}

func (c *Client) collectorID() uuid.UUID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id.CollectorID
}

// next is what answers to pushes tell of the configuration.
type next struct {
	mu      sync.Mutex
	version int64
	check   time.Duration
	told    chan struct{} // one: something was told since it was looked at
}

func newNext() *next { return &next{told: make(chan struct{}, 1)} }

// maxCheckIn bounds what a gateway may ask for, so that a slip there does not
// keep a collector from its configuration.
const maxCheckIn = time.Hour

func (n *next) tell(version int64, checkIn time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.version = version
	if checkIn > 0 {
		n.check = min(checkIn, maxCheckIn)
	}
	select {
	case n.told <- struct{}{}:
	default:
	}
}

func (n *next) read() (version int64, check time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.version, n.check
}

// wait returns when a version was told that is not known, or the time to check
// in has come, as it was told last; false when ctx ended. A fleet does not check
// in at once.
func (n *next) wait(ctx context.Context, known func(version int64) bool) bool {
	began, spread := time.Now(), 0.75+rand.Float64()/2
	for {
		version, check := n.read()
		if !known(version) {
			return true
		}
		timer := time.NewTimer(time.Until(began.Add(time.Duration(spread * float64(check)))))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			return true
		case <-n.told:
			timer.Stop()
		}
	}
}
