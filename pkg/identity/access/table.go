// Package access says who may use which route, and sees to it.
//
// Invariant: there is one table of all routes of all services. A route that is
// not in it is refused to everyone.
package access

import (
	"iter"
	"maps"
	"strings"

	"pganalytics/pkg/identity"
)

// Access says who may use a route: each of those that are set. The zero value
// lets nobody in.
type Access struct {
	// Anyone needs no credential.
	Anyone bool
	// User is the least role of a user's access token; zero lets no user in.
	User identity.Role
	// BeforePassword lets a user in who must change the password first.
	BeforePassword bool
	// Read and Push let an API token of that scope in.
	Read, Push bool

	// What the route's own handler checks: the credential is consumed there, or
	// belongs to the connection.

	Collector   bool // certificate and collector token
	Certificate bool // certificate alone
	Enrollment  bool // enrolment token
	Refresh     bool // refresh token, in the body
}

// own reports whether the route's handler checks some credential by itself.
func (a Access) own() bool { return a.Collector || a.Certificate || a.Enrollment || a.Refresh }

// The one table.
var table = map[string]Access{
	"POST /api/v1/auth/login":           {Anyone: true},
	"POST /api/v1/auth/refresh":         {Refresh: true},
	"POST /api/v1/auth/logout":          {User: identity.Viewer, BeforePassword: true},
	"GET /api/v1/auth/me":               {User: identity.Viewer, BeforePassword: true},
	"POST /api/v1/auth/change-password": {User: identity.Viewer, BeforePassword: true},

	"GET /api/v1/users":                      {User: identity.Admin},
	"POST /api/v1/users":                     {User: identity.Admin},
	"GET /api/v1/users/{id}":                 {User: identity.Admin},
	"PATCH /api/v1/users/{id}":               {User: identity.Admin},
	"DELETE /api/v1/users/{id}":              {User: identity.Admin},
	"POST /api/v1/users/{id}/reset-password": {User: identity.Admin},

	"GET /api/v1/tokens":         {User: identity.Operator},
	"POST /api/v1/tokens":        {User: identity.Operator},
	"DELETE /api/v1/tokens/{id}": {User: identity.Operator},

	"GET /api/v1/audit": {User: identity.Admin},
	"GET /api/v1/ca":    {Anyone: true},

	"GET /api/v1/enrollment-tokens":         {User: identity.Operator},
	"POST /api/v1/enrollment-tokens":        {User: identity.Operator},
	"DELETE /api/v1/enrollment-tokens/{id}": {User: identity.Operator},

	"POST /api/v1/collectors/register":     {Enrollment: true},
	"POST /api/v1/collectors/renew":        {Certificate: true},
	"POST /api/v1/collectors/token":        {Certificate: true},
	"POST /api/v1/collectors/{id}/disable": {User: identity.Operator},
	"POST /api/v1/collectors/{id}/enable":  {User: identity.Operator},
	"POST /api/v1/collectors/{id}/unlock":  {User: identity.Operator},
	"DELETE /api/v1/collectors/{id}":       {User: identity.Operator},
	"GET /api/v1/collectors":               {User: identity.Viewer},
	"GET /api/v1/collectors/{id}":          {User: identity.Viewer},

	"POST /api/v1/metrics/push":         {Collector: true},
	"GET /api/v1/config/{collector_id}": {Collector: true},

	"GET /api/v1/health": {Anyone: true},
	"GET /version":       {Anyone: true},
	"GET /openapi.json":  {Anyone: true},
}

// To returns who may use the route; path has its parameters in braces. HEAD is
// GET without a body.
func To(method, path string) Access {
	if method == "HEAD" {
		method = "GET"
	}
	return table[method+" "+path]
}

// All returns the table: method, a space, path.
func All() iter.Seq2[string, Access] { return maps.All(table) }

// Split returns method and path of a key of the table.
func Split(route string) (method, path string) {
	method, path, _ = strings.Cut(route, " ")
	return method, path
}
