package access_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/identity/access"
)

// The HTTP contract, written down once more: whoever changes the table has to change it here too.
const contract = `
anyone:      POST auth/login | GET ca | GET health | GET /version | GET /openapi.json
refresh:     POST auth/refresh
viewer:      POST auth/logout | GET auth/me | POST auth/change-password | GET collectors | GET collectors/{id}
operator:    GET tokens | POST tokens | DELETE tokens/{id}
operator:    GET enrollment-tokens | POST enrollment-tokens | DELETE enrollment-tokens/{id}
operator:    POST collectors/{id}/disable | POST collectors/{id}/enable | POST collectors/{id}/unlock | DELETE collectors/{id}
admin:       GET users | POST users | GET users/{id} | PATCH users/{id} | DELETE users/{id} | POST users/{id}/reset-password | GET audit
enrolment:   POST collectors/register
certificate: POST collectors/renew | POST collectors/token
collector:   POST metrics/push | GET config/{collector_id}
`

func TestTableIsTheContracts(t *testing.T) {
	t.Parallel()
	want := map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(contract)) {
		who, routes, _ := strings.Cut(strings.TrimSpace(line), ":")
		for route := range strings.SplitSeq(routes, "|") {
			method, path, _ := strings.Cut(strings.TrimSpace(route), " ")
			if !strings.HasPrefix(path, "/") {
				path = "/api/v1/" + path
			}
			want[method+" "+path] = who
		}
	}
	got := map[string]string{}
	for route, a := range access.All() {
		var who []string
		for name, is := range map[string]bool{
			"anyone": a.Anyone, "refresh": a.Refresh, "enrolment": a.Enrollment, "certificate": a.Certificate,
			"collector": a.Collector, "read": a.Read, "push": a.Push, a.User.String(): a.User != 0,
		} {
			if is {
				who = append(who, name)
			}
		}
		slices.Sort(who)
		got[route] = strings.Join(who, " ")
	}
	require.Equal(t, want, got)
}

func TestWhoMustChangeThePasswordMayDoNothingElse(t *testing.T) {
	t.Parallel()
	var may []string
	for route, a := range access.All() {
		if a.BeforePassword {
			may = append(may, route)
		}
	}
	slices.Sort(may)
	require.Equal(t, []string{"GET /api/v1/auth/me", "POST /api/v1/auth/change-password", "POST /api/v1/auth/logout"}, may)
}

func TestRouteThatIsNotInTheTableIsNobodys(t *testing.T) {
	t.Parallel()
	require.Equal(t, access.Access{}, access.To("GET", "/api/v1/new"))
	require.Equal(t, access.Access{}, access.To("PUT", "/api/v1/users"))
	require.Equal(t, access.To("GET", "/api/v1/users"), access.To("HEAD", "/api/v1/users"))
}
