package httpserver

import (
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"pganalytics/pkg/fault"
)

// NewRouter returns a router that answers HEAD where it answers GET, and a
// problem where it has no route.
func NewRouter() *chi.Mux {
	router := chi.NewRouter()
	router.Use(middleware.GetHead)
	router.NotFound(Handle(func(http.ResponseWriter, *http.Request) error {
		return fault.New(fault.NotFound, "not_found", "There is nothing at this path.")
	}))
	router.MethodNotAllowed(Handle(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allowed(router, r.URL.Path))
		return fault.New(fault.MethodNotAllowed, "method_not_allowed", "This path does not take this method.")
	}))
	return router
}

// allowed lists the methods that the router takes at a path.
func allowed(router *chi.Mux, path string) string {
	var methods []string
	for _, method := range []string{
		http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
	} {
		if !router.Match(chi.NewRouteContext(), method, path) {
			continue
		}
		methods = append(methods, method)
		if method == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
	}
	return strings.Join(methods, ", ")
}
