package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/collector/uplink"
)

// sender is a collector that pushes what it is given, over mTLS.
type sender struct {
	id    *uplink.Identity
	http  *http.Client
	token string
}

func newSender(ctx context.Context, id *uplink.Identity) (*sender, error) {
	anchors := x509.NewCertPool()
	for _, c := range id.ServerCAs {
		anchors.AddCert(c)
	}
	s := &sender{id: id, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: anchors, Certificates: []tls.Certificate{id.Certificate}, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: senders,
	}}}
	var answer struct{ Token string }
	if err := s.post(ctx, "/api/v1/collectors/token", nil, http.StatusOK, &answer); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	s.token = answer.Token
	return s, nil
}

func (s *sender) post(ctx context.Context, path string, body []byte, want int, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.id.CollectorURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != want {
		return fmt.Errorf("%s: %s", res.Status, data)
	}
	return json.Unmarshal(data, answer)
}

// push sends one batch and checks that all of it was taken.
func (s *sender) push(ctx context.Context, sh shape, head string, p payload, buf []byte) ([]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return buf, err
	}
	buf = append(buf[:0], `{"collector_id":"`...)
	buf = append(buf, s.id.CollectorID.String()...)
	buf = append(buf, `","hostname":"bench","version":"bench","timestamp":"`...)
	buf = time.Now().UTC().AppendFormat(buf, "2006-01-02T15:04:05.000000Z")
	buf = append(buf, `","batch_id":"`...)
	buf = append(buf, id.String()...)
	buf = append(buf, head...)
	buf = append(buf, p.json...)
	buf = append(buf, "}]}"...)
	var answer struct {
		Rows int `json:"rows_accepted"`
	}
	if err := s.post(ctx, "/api/v1/metrics/push", buf, http.StatusAccepted, &answer); err != nil {
		return buf, err
	}
	if answer.Rows != sh.rows {
		return buf, fmt.Errorf("%d of %d rows accepted", answer.Rows, sh.rows)
	}
	return buf, nil
}

// head is what stands between the batch's id and its rows.
func (sh shape) head() string {
	var names []string
	for _, c := range sh.columns() {
		names = append(names, strconv.Quote(c.Name))
	}
	return `","metrics_count":1,"metrics":[{"type":"` + sh.family + `","columns":[` + strings.Join(names, ",") + `],"rows":`
}

// pushAll pushes every payload once and returns the time until the last row
// was committed.
func (s *system) pushAll(ctx context.Context, sh shape, loads []payload) (time.Duration, error) {
	before, err := s.stored(ctx)
	if err != nil {
		return 0, err
	}
	head := sh.head()
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for n := range senders {
		g.Go(func() error {
			var buf []byte
			var err error
			for i := n; i < len(loads); i += senders {
				if buf, err = s.sender.push(gctx, sh, head, loads[i], buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		n, err := s.stored(ctx)
		if err != nil {
			return 0, err
		}
		if n == before+len(loads) {
			return time.Since(start), nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%d of %d batches stored after two minutes", n-before, len(loads))
		}
		time.Sleep(5 * time.Millisecond) // far below what is measured
	}
}
