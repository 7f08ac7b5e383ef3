package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
)

// answer is the body of 202.
type answer struct {
	Status             string           `json:"status"` // accepted
	CollectorID        string           `json:"collector_id"`
	BatchID            string           `json:"batch_id"`
	Duplicate          bool             `json:"duplicate"`
	MetricsAccepted    int              `json:"metrics_accepted"`
	RowsAccepted       int              `json:"rows_accepted"`
	Rejected           []push.Rejection `json:"rejected"`
	RejectedMore       int              `json:"rejected_more"`
	BytesReceived      int64            `json:"bytes_received"` // on the wire
	ProcessingTimeMS   float64          `json:"processing_time_ms"`
	NextConfigVersion  int64            `json:"next_config_version"` // 0: there is none
	NextCheckInSeconds int              `json:"next_check_in_seconds"`
}

// push takes one batch. What is cheap to refuse is refused first: headers,
// then the sender, and only then is the body read.
func (g *Gateway) push(w http.ResponseWriter, r *http.Request) error {
	began := time.Now()
	form, encoding, err := g.checkHeaders(r)
	if err != nil {
		return g.refused(err)
	}
	who, err := g.authenticate(r)
	if err != nil {
		return g.refused(err)
	}
	if err := g.admit(who); err != nil {
		return g.refused(err)
	}
	in, err := g.open(r, encoding)
	if err != nil {
		return g.refused(err)
	}
	defer in.Close()
	b, report, err := g.decode(in, form, who, began)
	if err != nil {
		return g.refused(err)
	}
	b.TraceParent = traceParent(r.Header)
	tuples := int64(b.TupleBytes())
	if form.keepsBody {
		in.hold(in.inflated + tuples) // the tuples in the body, and their copy in the message
	} else {
		in.hold(2 * tuples)
	}
	duplicate, err := g.publish(r.Context(), b)
	if err != nil {
		return g.refused(err)
	}
	g.metrics.accepted(b, form, duplicate)
	httpserver.Annotate(r.Context(), slog.String("batch_id", b.ID.String()),
		slog.Int("rows", report.RowsAccepted), slog.Bool("duplicate", duplicate))
	return httpserver.WriteJSON(w, http.StatusAccepted, answer{
		Status:             "accepted",
		CollectorID:        b.CollectorID.String(),
		BatchID:            b.ID.String(),
		Duplicate:          duplicate,
		MetricsAccepted:    report.ItemsAccepted,
		RowsAccepted:       report.RowsAccepted,
		Rejected:           report.Rejected,
		RejectedMore:       report.RejectedMore,
		BytesReceived:      in.wire.read,
		ProcessingTimeMS:   float64(time.Since(began).Microseconds()) / 1000,
		NextConfigVersion:  g.configs.Version(who.CollectorID),
		NextCheckInSeconds: int(g.cfg.CheckIn / time.Second),
	})
}

// refused counts a push that was not accepted.
func (g *Gateway) refused(err error) error {
	g.metrics.batches.WithLabelValues(fault.ClassOf(err).String()).Inc()
	return err
}

// checkHeaders refuses what no body can make good.
func (g *Gateway) checkHeaders(r *http.Request) (form, encoding, error) {
	media, err := httpserver.ContentType(r, jsonType, native.ContentType)
	if err != nil {
		return form{}, "", err
	}
	encoding, err := parseEncoding(r.Header.Values("Content-Encoding"))
	if err != nil {
		return form{}, "", err
	}
	if r.ContentLength > g.cfg.MaxWireBytes {
		return form{}, "", wireTooLarge(g.cfg.MaxWireBytes)
	}
	return formOf(media), encoding, nil
}

// authenticate asks anew for every request: a connection may outlive the
// certificate, the token and the collector.
func (g *Gateway) authenticate(r *http.Request) (identity.Principal, error) {
	var state tls.ConnectionState
	if r.TLS != nil {
		state = *r.TLS
	}
	who, err := g.auth.VerifyCollector(state, r.Header.Get("Authorization"))
	if err != nil {
		return identity.Principal{}, fmt.Errorf("verify collector: %w", err)
	}
	httpserver.Annotate(r.Context(), slog.String("collector_id", who.CollectorID.String()))
	return who, nil
}

// quarantineRetry is how long a collector in quarantine should stay away. A
// person must look at its dead letters first.
const quarantineRetry = time.Minute

// admit refuses a collector whose batches end among the dead letters. It keeps
// them, and what can be stored of them is stored later.
func (g *Gateway) admit(who identity.Principal) error {
	if !g.quarantine.Quarantined(who.CollectorID) {
		return nil
	}
	return &fault.Error{
		Class: fault.Throttled, Code: "quarantined", RetryAfter: quarantineRetry,
		Detail: "Too many batches of this collector could not be stored; an operator must look at them first.",
	}
}

// decode reads the body.
func (g *Gateway) decode(in *intake, f form, who identity.Principal, now time.Time) (*batch.Batch, *push.Report, error) {
	b, report, err := f.decode(in, who.CollectorID, g.catalogue, g.cfg.Limits, now)
	g.metrics.decoded(in, f, report, time.Since(now), err)
	if err != nil {
		return nil, nil, fmt.Errorf("decode batch: %w", err)
	}
	return b, report, nil
}

// publish waits for the stream even if the sender has left: what comes of the
// batch is counted either way, and a sender that repeats gets a duplicate.
func (g *Gateway) publish(ctx context.Context, b *batch.Batch) (duplicate bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.PublishTimeout)
	defer cancel()
	began := time.Now()
	duplicate, err = g.publisher.Publish(ctx, b)
	g.metrics.published(time.Since(began), err)
	if fault.ClassOf(err) == fault.TooLarge {
		// The batch was within the limits that the stream had when we started,
		// so it is the stream that has become too narrow. That can be mended,
		// and at 413 the sender would give the batch up.
		err = &fault.Error{
			Class: fault.Unavailable, Code: fault.Unavailable.String(),
			Detail: "The stream does not take batches of this size now; send it again.", Err: err,
		}
	}
	if err != nil {
		return false, fmt.Errorf("publish batch: %w", err)
	}
	return duplicate, nil
}
