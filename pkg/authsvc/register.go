package authsvc

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// registerRequest is the body of POST collectors/register.
type registerRequest struct {
	Name     string `json:"name"`
	Hostname string `json:"hostname"`
	Address  string `json:"address"`
	Version  string `json:"version"`
	CSR      string `json:"csr"`
}

// registerAnswer is its answer. ExpiresAt is the token's end; the certificate
// says its own. CA is the bundle to verify our servers with. CollectorURL is
// where to push, TokenURL where to renew and to get tokens.
type registerAnswer struct {
	CollectorID          uuid.UUID `json:"collector_id"`
	Token                string    `json:"token"`
	Certificate          string    `json:"certificate"`
	CA                   string    `json:"ca"`
	ExpiresAt            time.Time `json:"expires_at"`
	CertificateExpiresAt time.Time `json:"certificate_expires_at"`
	CollectorURL         string    `json:"collector_url"`
	TokenURL             string    `json:"token_url"`
}

// Registration asks the store to enrol. Its token decides what that is:
//
//	a new collector            one more collector, generation 1
//	a collector that is there  the next generation; all earlier ones revoked
type Registration struct {
	TokenID   string
	TokenHash [sha256.Size]byte
	At        time.Time
	Source    netip.Addr

	CollectorID                      uuid.UUID
	Again                            bool // CollectorID is there already, as the token says
	Name, Hostname, Address, Version string
	Certificate                      Certificate
}

// Registered is what became of a Registration.
type Registered struct {
	Record      identity.Collector
	DER         []byte // the certificate to hand out
	Revocations []identity.Revocation
}

// register enrols a collector. The token is looked at before the body is read,
// so that nobody without one has us parse or sign anything; what counts is the
// UPDATE that consumes it in the end.
//
// If the answer gets lost, the collector asks again with the same token and
// key and gets the same certificate, until it has used that. Who does not hold
// the key learns nothing: to everybody else the token is used.
func (s *Service) register(w http.ResponseWriter, r *http.Request) error {
	answer, err := s.enrol(r)
	s.metrics.enrolments.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		return fmt.Errorf("enrol collector: %w", err)
	}
	return httpserver.WriteJSON(w, http.StatusCreated, answer)
}

func (s *Service) enrol(r *http.Request) (*registerAnswer, error) {
	ctx := r.Context()
	tokenID, hash, err := parseEnrollmentToken(r.Header.Get("Authorization"))
	if err != nil {
		return nil, err
	}
	token, err := s.Tokens.EnrollmentToken(ctx, tokenID)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now().UTC()
	repeat, ok := token.admits(hash, source(r), now)
	if !ok {
		return nil, ErrEnrollmentRefused
	}
	registration := Registration{TokenID: tokenID, TokenHash: hash, At: now, Source: source(r)}
	done, err := s.registration(r, registration, token, repeat)
	if err != nil && repeat && fault.ClassOf(err).HTTPStatus() < 500 {
		return nil, ErrEnrollmentRefused // the token is used, whatever else is wrong
	}
	if err != nil {
		return nil, err
	}
	return s.welcome(done)
}

// registration reads the body and enrols.
func (s *Service) registration(r *http.Request, g Registration, token EnrollmentToken, repeat bool) (Registered, error) {
	ctx := r.Context()
	var none Registered
	body, err := httpserver.ReadJSON[registerRequest](r, maxBodyBytes)
	if err != nil {
		return none, err
	}
	if err := body.validate(); err != nil {
		return none, err
	}
	if token.BoundName != "" && token.BoundName != body.Name || len(token.Names) > 0 && !slices.Contains(token.Names, body.Name) {
		return none, fault.New(fault.Forbidden, "enrollment_name_mismatch", "The enrolment token is for another name.")
	}
	request, err := parseCSR(body.CSR)
	if err != nil {
		return none, err
	}
	g.Name, g.Hostname, g.Address, g.Version = body.Name, body.Hostname, body.Address, body.Version
	if repeat || slices.Contains(token.UsedNames, body.Name) {
		g.Certificate.KeyHash = request.KeyHash()
		return s.Collectors.RepeatedRegistration(ctx, g)
	}
	if g.CollectorID, g.Again = token.CollectorID, token.CollectorID != uuid.Nil; !g.Again {
		g.CollectorID = uuid.New()
	}
	cert, err := s.Authority.IssueCollector(g.CollectorID, request)
	if err != nil {
		return none, err
	}
	g.Certificate = storable(cert)
	done, err := s.Collectors.Register(ctx, g)
	if errors.Is(err, ErrEnrollmentRefused) {
		// Used by another request meanwhile; perhaps by the same one, sent twice.
		return s.Collectors.RepeatedRegistration(ctx, g)
	}
	if err != nil {
		return none, err
	}
	// From here on it is enrolled, come what may.
	s.publish(context.WithoutCancel(ctx), done.Record, done.Revocations...)
	s.Log.Info("collector enrolled", "collector_id", g.CollectorID, "name", body.Name, "again", g.Again,
		"enrollment_token", g.TokenID, "not_after", cert.NotAfter)
	return done, nil
}

// welcome tells an enrolled collector all it needs.
func (s *Service) welcome(done Registered) (*registerAnswer, error) {
	cert, err := x509.ParseCertificate(done.DER)
	if err != nil {
		return nil, fmt.Errorf("read stored certificate: %w", err)
	}
	access, expires, err := s.Signer.CollectorToken(done.Record.ID, done.Record.Hostname, cert)
	if err != nil {
		return nil, err
	}
	return &registerAnswer{
		CollectorID: done.Record.ID, Token: access, ExpiresAt: expires,
		Certificate: string(ca.EncodePEM(cert)), CertificateExpiresAt: cert.NotAfter,
		CA: string(ca.EncodePEM(s.Authority.ServerCAs()...)), CollectorURL: s.cfg.CollectorURL, TokenURL: s.cfg.TokenURL,
	}, nil
}

// validate reports all faulty members at once. The CSR is looked at later.
func (r registerRequest) validate() error {
	var fields []fault.Field
	check := func(pointer, value string, least, most int) {
		switch {
		case len(value) < least:
			fields = append(fields, fault.Field{Pointer: pointer, Code: "required", Detail: "is missing"})
		case len(value) > most:
			fields = append(fields, fault.Field{Pointer: pointer, Code: "too_long", Detail: fmt.Sprintf("is longer than %d bytes", most)})
		case strings.TrimSpace(value) != value || strings.ContainsFunc(value, func(c rune) bool { return !unicode.IsPrint(c) }):
			fields = append(fields, fault.Field{Pointer: pointer, Code: "not_printable", Detail: "has characters that do not print, or space around it"})
		}
	}
	check("/name", r.Name, 1, maxNameBytes)
	check("/hostname", r.Hostname, 1, 253)
	check("/address", r.Address, 0, 255)
	check("/version", r.Version, 0, 100)
	if len(fields) > 0 {
		return &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.", Fields: fields}
	}
	return nil
}
