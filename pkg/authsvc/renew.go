package authsvc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// renewRequest is the body of POST collectors/renew.
type renewRequest struct {
	CSR string `json:"csr"`
}

// renewAnswer holds no access token: the first POST collectors/token with the
// new certificate is how we learn that it arrived.
type renewAnswer struct {
	CollectorID          uuid.UUID `json:"collector_id"`
	Certificate          string    `json:"certificate"`
	CA                   string    `json:"ca"`
	CertificateExpiresAt time.Time `json:"certificate_expires_at"`
}

// Renewal asks the store to exchange the presented certificate for a new one.
// Certificates of a collector are numbered. With g the newest:
//
//	presented is g                                    → g+1
//	g was issued to presented, has not been seen in
//	use, and is over the same new key                 → g again: a repeated request
//	g was issued to presented, has not been seen in
//	use, and was itself no such overlap               → g+1, an overlap: the answer was lost
//	anything older                                    → the collector is locked
//
// For if two hold certificates of one collector, one of them has a copied key,
// and nobody can tell which. A database from an older backup may not know the
// presented one: if verifiers know it as the newest, it is taken over as that.
type Renewal struct {
	CollectorID uuid.UUID
	Presented   Certificate
	Known       identity.Collector // what verifiers know of the collector
	At          time.Time
	Source      netip.Addr
	Certificate Certificate // signed already; not handed out unless it is stored
}

// Renewed is what became of a Renewal.
type Renewed struct {
	Collector identity.Collector // Status Locked: it was locked just now, and no certificate is handed out
	DER       []byte             // the certificate to hand out
	Repeated  bool               // DER is the one of an earlier request
}

// renew exchanges the presented certificate for a new one over a new key. The
// identity comes from the presented certificate alone.
func (s *Service) renew(w http.ResponseWriter, r *http.Request) error {
	answer, result, err := s.exchange(r)
	s.metrics.renewals.WithLabelValues(result).Inc()
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	return httpserver.WriteJSON(w, http.StatusOK, answer)
}

func (s *Service) exchange(r *http.Request) (answer *renewAnswer, result string, err error) {
	ctx := r.Context()
	state := connection(r)
	who, err := s.Verifier.VerifyRenewal(state)
	if err != nil {
		return nil, outcome(err), err
	}
	body, err := httpserver.ReadJSON[renewRequest](r, maxBodyBytes)
	if err != nil {
		return nil, outcome(err), err
	}
	request, err := parseCSR(body.CSR)
	if err != nil {
		return nil, outcome(err), err
	}
	if request.SameKey(state.PeerCertificates[0]) {
		return nil, resultRefused, fault.New(fault.Invalid, "key_reused", "A renewal needs a new key.")
	}
	cert, err := s.Authority.IssueCollector(who.CollectorID, request)
	if err != nil {
		return nil, outcome(err), err
	}
	// What this process saw in use must count before it is decided on.
	if err := s.flushUsed(ctx); err != nil {
		return nil, outcome(err), err
	}
	known, _ := s.Snapshot.Collector(who.CollectorID)
	renewed, err := s.Collectors.Renew(ctx, Renewal{
		CollectorID: who.CollectorID, Presented: storable(state.PeerCertificates[0]), Known: known,
		At: s.cfg.Now().UTC(), Source: source(r), Certificate: storable(cert),
	})
	if err != nil {
		return nil, outcome(err), err
	}
	s.publish(context.WithoutCancel(ctx), renewed.Collector)
	if renewed.Collector.Status == identity.Locked {
		s.Log.Error("collector locked: a certificate that is not its newest was used to renew; its key may have been copied",
			"collector_id", who.CollectorID, "presented", who.Thumbprint, "newest", renewed.Collector.Thumbprint, "source", source(r))
		return nil, resultLocked, ErrCollectorLocked
	}
	issued, err := x509.ParseCertificate(renewed.DER)
	if err != nil {
		return nil, outcome(err), fmt.Errorf("read stored certificate: %w", err)
	}
	s.Log.Info("certificate renewed", "collector_id", who.CollectorID, "generation", renewed.Collector.Generation,
		"repeated", renewed.Repeated, "not_after", issued.NotAfter)
	return &renewAnswer{
		CollectorID: who.CollectorID, Certificate: string(ca.EncodePEM(issued)), CertificateExpiresAt: issued.NotAfter,
		CA: string(ca.EncodePEM(s.Authority.ServerCAs()...)),
	}, resultDone, nil
}

// connection returns the TLS state of the request, or one that no check lets
// through.
func connection(r *http.Request) tls.ConnectionState {
	if r.TLS == nil {
		return tls.ConnectionState{}
	}
	return *r.TLS
}
