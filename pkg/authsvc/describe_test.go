package authsvc_test

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity/access"
)

var update = flag.Bool("update", false, "write schemas/openapi.json")

const openAPI = "../../schemas/openapi.json"

// make generate runs it with -update.
func TestOpenAPIIsWhatTheRoutesSay(t *testing.T) {
	t.Parallel()
	description, err := authsvc.Description()
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile(openAPI, description, 0o600))
	}
	committed, err := os.ReadFile(openAPI)
	require.NoError(t, err)
	require.Equal(t, string(committed), string(description), "schemas/openapi.json is out of date: run make generate")

	var d struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string                `json:"operationId"`
			Security    []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	require.NoError(t, json.Unmarshal(description, &d))
	require.True(t, strings.HasPrefix(d.OpenAPI, "3.1."), d.OpenAPI)
	ids := map[string]bool{}
	for path, operations := range d.Paths {
		for method, op := range operations {
			a := access.To(strings.ToUpper(method), path)
			require.NotEqual(t, access.Access{}, a, "%s %s is described and nobody may use it", method, path)
			require.False(t, ids[op.OperationID], op.OperationID)
			ids[op.OperationID] = true
			require.Equal(t, a.User != 0 || a.Read || a.Push || a.Certificate || a.Enrollment || a.Collector, len(op.Security) > 0, "%s %s", method, path)
		}
	}
	require.NotContains(t, string(description), "$schema")
}
