package access

import (
	"log/slog"
	"net/http"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
)

// Guard lets requests through to a route as the table has it. It satisfies
// typed.Guard by its method Route.
type Guard struct {
	verifier *identity.Verifier
}

// New makes a guard.
func New(v *identity.Verifier) Guard { return Guard{v} }

// Route returns the middleware of one route. The next handler finds the
// principal in the request's context.
func (g Guard) Route(method, path string) func(http.Handler) http.Handler {
	access := To(method, path)
	return func(next http.Handler) http.Handler {
		return httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
			who, err := g.admit(access, r)
			if err != nil {
				return err
			}
			if who.Actor() != anonymous {
				httpserver.Annotate(r.Context(), slog.String("actor", who.Actor()))
				r = r.WithContext(identity.WithPrincipal(r.Context(), who))
			}
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

var anonymous = identity.Principal{}.Actor()

var errForbidden = fault.New(fault.Forbidden, "forbidden", "This credential may not do that.")

// admit errs with Unauthenticated, Forbidden or Unavailable.
func (g Guard) admit(a Access, r *http.Request) (identity.Principal, error) {
	authorization := r.Header.Get("Authorization")
	switch {
	case a.Anyone || a.own():
		return identity.Principal{}, nil
	case a == Access{}:
		return identity.Principal{}, errForbidden
	case identity.IsAPIToken(authorization):
		return g.apiToken(a, authorization)
	}
	who, err := g.verifier.VerifyUser(authorization)
	switch {
	case err != nil:
		return who, err
	case a.User == 0 || who.Role < a.User:
		return identity.Principal{}, errForbidden
	case who.MustChangePassword && !a.BeforePassword:
		return identity.Principal{}, fault.New(fault.Forbidden, "password_change_required", "Change the password first.")
	}
	return who, nil
}

func (g Guard) apiToken(a Access, authorization string) (identity.Principal, error) {
	who, err := g.verifier.VerifyAPIToken(authorization)
	switch {
	case err != nil:
		return who, err
	case a.Read && who.Scopes.Read(), a.Push && who.Scopes.CanPush():
		return who, nil
	}
	return identity.Principal{}, errForbidden
}
