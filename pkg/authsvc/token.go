package authsvc

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	"pganalytics/pkg/httpserver"
)

// tokenAnswer is the answer of POST collectors/token.
type tokenAnswer struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

// token hands out an access token for the presented certificate. It asks
// nobody: certificate, snapshot and signing key are all in memory, so that
// collectors keep pushing while the database is away.
func (s *Service) token(w http.ResponseWriter, r *http.Request) error {
	answer, err := s.issueToken(r)
	s.metrics.tokens.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		return fmt.Errorf("hand out token: %w", err)
	}
	return httpserver.WriteJSON(w, http.StatusOK, answer)
}

func (s *Service) issueToken(r *http.Request) (*tokenAnswer, error) {
	state := connection(r)
	who, err := s.Verifier.VerifyCertificate(state)
	if err != nil {
		return nil, err
	}
	// A token that gateways don't believe yet would be answered with 401.
	if !s.Verifier.KnowsKey(s.Signer.Record().KID) {
		return nil, errKeyUnpublished
	}
	token, expires, err := s.Signer.CollectorToken(who.CollectorID, who.Hostname, state.PeerCertificates[0])
	if err != nil {
		return nil, err
	}
	s.markUsed(who.Thumbprint)
	return &tokenAnswer{Token: token, ExpiresAt: expires}, nil
}

// markUsed remembers that a certificate is in use until Run has told the store.
// Only certificates of ours get here, so the map is bounded by their number.
func (s *Service) markUsed(thumbprint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[thumbprint] = s.cfg.Now().UTC()
}

// flushUsed tells the store which certificates have been seen in use. What it
// can't tell is kept for the next time. One call waits for the other, so that
// whoever returns knows that the store has been told of all seen before.
func (s *Service) flushUsed(ctx context.Context) error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	batch := s.used
	s.used = map[string]time.Time{}
	s.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := s.Collectors.MarkUsed(ctx, batch)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(batch, s.used) // what came meanwhile is newer
	s.used = batch
	return fmt.Errorf("note certificates in use: %w", err)
}
