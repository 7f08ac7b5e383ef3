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
	"pganalytics/pkg/policy/pulled"
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

// Configs knows what collectors are to pull, from memory, and keeps what they
// say about it.
type Configs interface {
	// Answer returns false while it is not known what there is.
	Answer(collector uuid.UUID) (pulled.Answer, bool)
	// Version is that of Answer, and 0 while it is not known.
	Version(collector uuid.UUID) int64
	// Report keeps a state unless it is known already.
	Report(ctx context.Context, collector uuid.UUID, s pulled.State) error
}

// Gateway serves the routes of collectors.
type Gateway struct {
	cfg        Config
	publisher  Publisher
	auth       Authenticator
	quarantine Quarantine
	configs    Configs
	catalogue  *catalogue.Catalogue
	metrics    *metrics
	budget     *budget
}

// New makes a gateway. Zero values in cfg stand for the defaults.
func New(
	cfg Config, publisher Publisher, auth Authenticator, quarantine Quarantine, configs Configs, cat *catalogue.Catalogue, reg prometheus.Registerer,
) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	cfg = cfg.withDefaults()
	budget := &budget{max: cfg.MaxInFlightBytes}
	return &Gateway{
		cfg: cfg, publisher: publisher, auth: auth, quarantine: quarantine, configs: configs, catalogue: cat,
		metrics: newMetrics(reg, budget), budget: budget,
	}, nil
}

// Routes mounts the gateway's routes. They need the connection's client
// certificate, so the router must be that of the collectors' listener.
func (g *Gateway) Routes(router chi.Router) {
	router.Post("/api/v1/metrics/push", httpserver.Handle(g.push))
	router.Get("/api/v1/config/{collector_id}", httpserver.Handle(g.config))
}
