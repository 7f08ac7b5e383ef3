package typed

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Describe adds to the description a route that is served elsewhere. I and O
// are as for Route.
func Describe[I, O any](a *API, op Operation) {
	served := a.api
	a.api = huma.NewAPI(huma.Config{OpenAPI: served.OpenAPI(), DefaultFormat: "application/json", Formats: huma.DefaultFormats}, nowhere{})
	defer func() { a.api = served }()
	Route(a, op, func(context.Context, *I) (*O, error) { return nil, nil })
}

// nowhere is a router that serves nothing.
type nowhere struct{}

// Handle implements huma.Adapter.
func (nowhere) Handle(*huma.Operation, func(huma.Context)) {}

// ServeHTTP implements huma.Adapter.
func (nowhere) ServeHTTP(http.ResponseWriter, *http.Request) {}

// Scheme is a kind of credential in the description.
type Scheme struct {
	Name        string
	Type        string // http, or mutualTLS
	Description string
}

// Secure adds to the description which credentials each route takes: one of
// those that of returns, or none. Each is one of the schemes, with its scopes
// or roles.
func (a *API) Secure(schemes []Scheme, of func(method, path string) []map[string][]string) {
	d := a.api.OpenAPI()
	if d.Components.SecuritySchemes == nil {
		d.Components.SecuritySchemes = map[string]*huma.SecurityScheme{}
	}
	for _, s := range schemes {
		described := &huma.SecurityScheme{Type: s.Type, Description: s.Description}
		if s.Type == "http" {
			described.Scheme = "bearer"
		}
		d.Components.SecuritySchemes[s.Name] = described
	}
	for path, item := range d.Paths {
		for method, op := range map[string]*huma.Operation{
			http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPut: item.Put,
			http.MethodPatch: item.Patch, http.MethodDelete: item.Delete,
		} {
			if op != nil {
				op.Security = of(method, path)
			}
		}
	}
}
