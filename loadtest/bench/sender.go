package main

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
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/identity/ca"
)

// sender is a collector that pushes what it is given, over mTLS.
type sender struct {
	id      uuid.UUID
	gateway string // URL
	http    *http.Client
	token   string
}

// fleet says where collectors enrol, get their tokens and push.
type fleet struct {
	dir                   string // for the identities
	pki                   string // directory of the authorities
	users, tokens, pushes string // URLs
}

// enrol makes n collectors.
func (f fleet) enrol(ctx context.Context, databaseURL string, n int) ([]*sender, error) {
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
	anchors, err := ca.LoadCertificates(filepath.Join(f.pki, ca.ServerCAFile))
	if err != nil {
		return nil, err
	}
	all := make([]*sender, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(senders)
	for i, name := range names {
		g.Go(func() error {
			id, err := uplink.Enroll(ctx, uplink.Enrollment{
				URL: f.users, CAFingerprint: ca.Fingerprint(anchors[0]), Token: token.Token,
				Name: name, Hostname: name, Version: "bench", StateDir: filepath.Join(f.dir, name),
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

func (f fleet) newSender(ctx context.Context, id *uplink.Identity) (*sender, error) {
	anchors := x509.NewCertPool()
	for _, c := range id.ServerCAs {
		anchors.AddCert(c)
	}
	s := &sender{id: id.CollectorID, gateway: f.pushes, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: anchors, Certificates: []tls.Certificate{id.Certificate}, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: senders + probing,
	}}}
	return s, s.authenticate(ctx, f.tokens)
}

// authenticate gets a token. A collector that has just enrolled is not known
// everywhere at once.
func (s *sender) authenticate(ctx context.Context, tokens string) error {
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

func (s *sender) post(ctx context.Context, url string, body []byte) (status int, text []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
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

// body appends one push of a batch whose rows are of the time at.
func (s *sender) body(buf []byte, sh shape, p payload, at time.Time) ([]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return buf, err
	}
	const rfc3339 = "2006-01-02T15:04:05.000000Z"
	buf = append(append(buf, `{"collector_id":"`...), s.id.String()...)
	buf = append(buf, `","hostname":"bench","version":"bench","timestamp":"`...)
	buf = time.Now().UTC().AppendFormat(buf, rfc3339)
	buf = append(append(buf, `","batch_id":"`...), id.String()...)
	buf = append(append(buf, `","metrics_count":1,"metrics":[{"type":"`...), sh.family...)
	buf = append(append(buf, `","server":"`...), p.server...)
	buf = append(buf, `","timestamp":"`...)
	buf = at.UTC().AppendFormat(buf, rfc3339)
	buf = append(buf, `","columns":["series"`...)
	for i := range sh.values {
		buf = strconv.AppendInt(append(buf, `,"v`...), int64(i), 10)
		buf = append(buf, '"')
	}
	buf = append(append(buf, `],"rows":`...), p.json...)
	return append(buf, "}]}"...), nil
}

// errBusy says that the gateway wants the batch again later.
var errBusy = errors.New("the gateway answered 503")

// push sends a body and checks that all of it was taken.
func (s *sender) push(ctx context.Context, sh shape, body []byte) error {
	status, text, err := s.post(ctx, s.gateway+"/api/v1/metrics/push", body)
	if err != nil {
		return err
	}
	if status == http.StatusServiceUnavailable {
		return fmt.Errorf("%w: %s", errBusy, text)
	}
	var answer struct {
		Rows int `json:"rows_accepted"`
	}
	if err := expect(http.StatusAccepted, status, text, &answer); err != nil {
		return err
	}
	if answer.Rows != sh.rows {
		return fmt.Errorf("%d of %d rows accepted: %s", answer.Rows, sh.rows, text)
	}
	return nil
}
