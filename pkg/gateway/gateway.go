// Package gateway takes batches from collectors over HTTP and puts them onto
// the stream. Its invariant: 202 is answered only after the stream has
// confirmed that the batch lies on its disk; everything else tells the sender
// to keep the batch. The gateway remembers nothing between requests and never
// holds a batch to send it later. It must not know the stream's client nor the
// database.
package gateway

import (
	"context"
	"crypto/tls"
	"fmt"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
)

// Publisher puts a batch onto the stream. It returns nil only when the batch
// lies on the stream's disk; duplicate tells that it lay there before.
type Publisher interface {
	Publish(ctx context.Context, b *batch.Batch) (duplicate bool, err error)
}

// Authenticator tells which collector sent a request, from its connection and
// its Authorization header. Errors are *fault.Error of class Unauthenticated,
// Forbidden or Unavailable.
type Authenticator interface {
	VerifyCollector(state tls.ConnectionState, authorization string) (identity.Principal, error)
}

// Quarantine tells whose batches are not taken for now, because too many of
// the earlier ones could not be stored.
type Quarantine interface {
	Quarantined(collector uuid.UUID) bool
}

// Gateway serves the routes that take metrics.
type Gateway struct {
	cfg        Config
	publisher  Publisher
	auth       Authenticator
	quarantine Quarantine
	catalogue  *catalogue.Catalogue
	metrics    *metrics
	budget     *budget
}

// New makes a gateway. Zero values in cfg stand for the defaults.
func New(
	cfg Config, publisher Publisher, auth Authenticator, quarantine Quarantine, cat *catalogue.Catalogue, reg prometheus.Registerer,
) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	cfg = cfg.withDefaults()
	budget := &budget{max: cfg.MaxInFlightBytes}
	return &Gateway{
		cfg: cfg, publisher: publisher, auth: auth, quarantine: quarantine, catalogue: cat,
		metrics: newMetrics(reg, budget), budget: budget,
	}, nil
}

// Routes mounts the gateway's routes. They need the connection's client
// certificate, so the router must be that of the collectors' listener.
func (g *Gateway) Routes(router chi.Router) {
	router.Post("/api/v1/metrics/push", httpserver.Handle(g.push))
}
