package authsvc

import (
	"github.com/go-chi/chi/v5"

	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity/access"
)

// Description returns the OpenAPI description of this service's routes. It
// needs no service: the routes and their types say it all.
func Description() ([]byte, error) {
	s := &Service{}
	api := s.describe(chi.NewRouter())
	s.routes(api)
	s.describeOthers(api)
	api.Secure(schemes, credentials)
	return api.Description()
}

// describeOthers adds the routes that are not made of typed functions: those
// look at the connection, or at the token before the body.
func (s *Service) describeOthers(api *typed.API) {
	const tag = "collectors"
	typed.Describe[struct{ Body registerRequest }, body[registerAnswer]](api, typed.Operation{
		ID: "register_collector", Method: "POST", Path: "/api/v1/collectors/register", Tag: tag, Status: 201,
		Summary: "Enrol a collector over its own key.",
	})
	typed.Describe[struct{ Body renewRequest }, body[renewAnswer]](api, typed.Operation{
		ID: "renew_certificate", Method: "POST", Path: "/api/v1/collectors/renew", Tag: tag,
		Summary: "Exchange the presented certificate for one over a new key.",
	})
	typed.Describe[struct{}, body[tokenAnswer]](api, typed.Operation{
		ID: "get_collector_token", Method: "POST", Path: "/api/v1/collectors/token", Tag: tag,
		Summary: "Get an access token for the presented certificate.",
	})
	type bundle struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}
	typed.Describe[struct{}, bundle](api, typed.Operation{
		ID: "get_ca", Method: "GET", Path: "/api/v1/ca", Tag: tag,
		Summary: "Get the authorities of the listeners' certificates, PEM.",
	})
}

var schemes = []typed.Scheme{
	{Name: "user", Type: "http", Description: "Access token of a login; the scope is the least role."},
	{Name: "api_token", Type: "http", Description: "API token; the scope is the one that it needs."},
	{Name: "enrollment_token", Type: "http", Description: "Enrolment token."},
	{Name: "certificate", Type: "mutualTLS", Description: "Certificate of a collector, on the listener for collectors."},
	{Name: "collector_token", Type: "http", Description: "Access token of a collector, bound to its certificate."},
}

// credentials tells the row of the one table in OpenAPI's words.
func credentials(method, path string) []map[string][]string {
	a := access.To(method, path)
	taken := []map[string][]string{}
	if a.User != 0 {
		taken = append(taken, map[string][]string{"user": {a.User.String()}})
	}
	if a.Read {
		taken = append(taken, map[string][]string{"api_token": {"read"}})
	}
	if a.Push {
		taken = append(taken, map[string][]string{"api_token": {"push"}})
	}
	if a.Enrollment {
		taken = append(taken, map[string][]string{"enrollment_token": {}})
	}
	if a.Certificate {
		taken = append(taken, map[string][]string{"certificate": {}})
	}
	if a.Collector {
		taken = append(taken, map[string][]string{"certificate": {}, "collector_token": {}})
	}
	return taken
}
