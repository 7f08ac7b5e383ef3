package httpserver

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/go-chi/chi/v5"

	"pganalytics/pkg/fault"
)

// record gathers what the access log says of one request. It belongs to the
// request's goroutine.
type record struct {
	id         string
	source     netip.Addr
	status     int // 0 until the answer has begun
	bytesIn    int64
	bytesOut   int64
	err        error
	code       string
	clientGone bool
	quiet      bool
	attrs      []slog.Attr
}

type recordKey struct{}

// recordOf returns the request's record, or one that nobody reads.
func recordOf(ctx context.Context) *record {
	if rec, ok := ctx.Value(recordKey{}).(*record); ok {
		return rec
	}
	return &record{}
}

// RequestID returns the id of the request that ctx belongs to, or "".
func RequestID(ctx context.Context) string { return recordOf(ctx).id }

// Source returns the address that the request of ctx came from, or the zero
// Addr.
func Source(ctx context.Context) netip.Addr { return recordOf(ctx).source }

func source(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap().WithZone("")
}

// Annotate adds to the request's line in the access log: who it was, what came
// of it. No secrets and no input of more than a few bytes.
func Annotate(ctx context.Context, attrs ...slog.Attr) {
	rec := recordOf(ctx)
	rec.attrs = append(rec.attrs, attrs...)
}

// observe gives every request an id, a line in the log and its place in the
// metrics, and turns a panic into a problem. routes, which may be nil, is the
// router behind next: it fills in the route context that is made here, so that
// the pattern is known when the request is done.
func (s *Server) observe(next http.Handler, routes chi.Routes) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &record{id: requestID(r), source: source(r)}
		route := chi.NewRouteContext()
		route.Routes = routes
		ctx := context.WithValue(r.Context(), recordKey{}, rec)
		ctx = context.WithValue(ctx, chi.RouteCtxKey, route)
		r = r.WithContext(ctx)

		h := w.Header()
		h.Set("X-Request-Id", rec.id)
		h.Set("X-Content-Type-Options", "nosniff")
		s.metrics.inFlight.WithLabelValues(s.cfg.Name).Inc()
		defer func() {
			s.metrics.inFlight.WithLabelValues(s.cfg.Name).Dec()
			if rec.status == 0 {
				rec.status = http.StatusOK // net/http answers a handler that wrote nothing
			}
			pattern := route.RoutePattern()
			if pattern == "" || pattern == "/*" {
				pattern = "unmatched"
			}
			took := time.Since(began)
			s.metrics.answered(s.cfg.Name, pattern, r.Method, rec, took)
			s.logRequest(r, pattern, rec, took)
		}()
		s.serveGuarded(&writer{ResponseWriter: w, record: rec}, r, next)
	})
}

// serveGuarded keeps a panic from taking the process down with the requests of
// others. Once an answer has begun, only a broken connection can tell the
// sender that the rest will not come.
func (s *Server) serveGuarded(w *writer, r *http.Request, next http.Handler) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		err, _ := v.(error)
		abort := errors.Is(err, http.ErrAbortHandler) // the handler's own wish, not a bug
		if !abort {
			s.metrics.panics.WithLabelValues(s.cfg.Name).Inc()
			s.log.Error("panic in a handler", "request_id", w.record.id, "panic", v, "stack", string(debug.Stack()))
		}
		if abort || w.record.status != 0 {
			panic(http.ErrAbortHandler)
		}
		WriteProblem(w, r, fault.New(fault.Internal, "internal", ""))
	}()
	next.ServeHTTP(w, r)
}

func (s *Server) logRequest(r *http.Request, pattern string, rec *record, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case rec.quiet:
		level = slog.LevelDebug
	case rec.status >= 500 && fault.ClassOf(rec.err) == fault.Internal && !rec.clientGone:
		level = slog.LevelError
	case rec.status >= 500 && !rec.clientGone:
		level = slog.LevelWarn
	}
	// The path and never the query: a query may hold a token.
	path := r.URL.Path
	if len(path) > 200 {
		path = path[:200]
	}
	attrs := []slog.Attr{
		slog.String("request_id", rec.id),
		slog.String("remote", r.RemoteAddr),
		slog.String("method", methodLabel(r.Method)),
		slog.String("route", pattern),
		slog.String("path", path),
		slog.Int("status", rec.status),
		slog.Int64("bytes_in", rec.bytesIn),
		slog.Int64("bytes_out", rec.bytesOut),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
	}
	attrs = append(attrs, rec.attrs...)
	if rec.clientGone {
		attrs = append(attrs, slog.Bool("client_gone", true))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("code", rec.code), slog.Any("err", rec.err))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// requestID takes over the sender's id if it can do no harm in a log, else it
// makes one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if len(id) == 0 || len(id) > 64 {
		return rand.Text()
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return rand.Text()
		}
	}
	return id
}

// writer notes status and size of the answer.
type writer struct {
	http.ResponseWriter
	record *record
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if w.record.status == 0 && status >= 200 { // 1xx precede the answer
		w.record.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.record.status == 0 {
		w.record.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.record.bytesOut += int64(n)
	return n, err
}
