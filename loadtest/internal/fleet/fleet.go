// Package fleet has collectors that push what they are given.
package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/identity/ca"
)

// Sender is a collector that pushes over mTLS.
type Sender struct {
	ID      uuid.UUID
	gateway string // URL
	http    *http.Client
	token   string
}

// Fleet says where collectors enrol, get their tokens and push.
type Fleet struct {
	Dir                   string // for the identities
	PKI                   string // directory of the authorities
	Users, Tokens, Pushes string // URLs
	Connections           int    // of one collector, kept open
}

// enrolling is how many collectors enrol at once.
const enrolling = 8

// Enrol makes n collectors.
func (f Fleet) Enrol(ctx context.Context, databaseURL string, n int) ([]*Sender, error) {
	store, err := pgstore.Open(ctx, databaseURL)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("collector%03d", i)
	}
	token, err := authsvc.CreateEnrollmentToken(ctx, store, authsvc.EnrollmentRequest{Actor: "cli:bench", Names: names})
	if err != nil {
		return nil, err
	}
	anchors, err := ca.LoadCertificates(filepath.Join(f.PKI, ca.ServerCAFile))
	if err != nil {
		return nil, err
	}
	all := make([]*Sender, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(enrolling)
	for i, name := range names {
		g.Go(func() error {
			id, err := uplink.Enroll(ctx, uplink.Enrollment{
				URL: f.Users, CAFingerprint: ca.Fingerprint(anchors[0]), Token: token.Token,
				Name: name, Hostname: name, Version: "bench", StateDir: filepath.Join(f.Dir, name),
			})
			if err != nil {
				return fmt.Errorf("enrol %s: %w", name, err)
			}
			all[i], err = f.newSender(ctx, id)
			return err
		})
	}
	return all, g.Wait()
}

func (f Fleet) newSender(ctx context.Context, id *uplink.Identity) (*Sender, error) {
	anchors := x509.NewCertPool()
	for _, c := range id.ServerCAs {
		anchors.AddCert(c)
	}
	s := &Sender{ID: id.CollectorID, gateway: f.Pushes, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: anchors, Certificates: []tls.Certificate{id.Certificate}, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: f.Connections,
	}}}
	return s, s.authenticate(ctx, f.Tokens)
}

// authenticate gets a token. A collector that has just enrolled is not known
// everywhere at once.
func (s *Sender) authenticate(ctx context.Context, tokens string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		status, text, err := s.post(ctx, tokens+"/api/v1/collectors/token", nil)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if status == http.StatusServiceUnavailable && time.Now().Before(deadline) {
			continue
		}
		var answer struct{ Token string }
		if err := expect(http.StatusOK, status, text, &answer); err != nil {
			return fmt.Errorf("token: %w", err)
		}
		s.token = answer.Token
		return nil
	}
}

func (s *Sender) post(ctx context.Context, url string, body []byte, header ...string) (status int, text []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err = io.ReadAll(res.Body)
	return res.StatusCode, text, err
}

func expect(want, status int, text []byte, answer any) error {
	if status != want {
		return fmt.Errorf("%d: %s", status, text)
	}
	return json.Unmarshal(text, answer)
}

// ErrBusy says that the gateway wants the batch again later.
var ErrBusy = errors.New("the gateway answered 503")

// Native is the header of a body as our collector sends it.
var Native = []string{"Content-Type", native.ContentType, "Content-Encoding", "zstd"}

// Push sends a body of JSON, or of what the header's pairs say, and checks that
// all of its rows were taken.
func (s *Sender) Push(ctx context.Context, body []byte, rows int, header ...string) error {
	status, text, err := s.post(ctx, s.gateway+"/api/v1/metrics/push", body, header...)
	if err != nil {
		return err
	}
	if status == http.StatusServiceUnavailable {
		return fmt.Errorf("%w: %s", ErrBusy, text)
	}
	var answer struct {
		Rows int `json:"rows_accepted"`
	}
	if err := expect(http.StatusAccepted, status, text, &answer); err != nil {
		return err
	}
	if answer.Rows != rows {
		return fmt.Errorf("%d of %d rows accepted: %s", answer.Rows, rows, text)
	}
	return nil
}
