package authsvc

import (
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
)

func FuzzRegisterBody(f *testing.F) {
	f.Add(`{"name":"db1","hostname":"db1.example","address":"10.0.0.1:5432","version":"1.0","csr":"x"}`)
	f.Add(`{"name":"a","name":"b"}`)
	f.Add(`{"Name":"a"}`)
	f.Add("{\"name\":\"a\u202e\",\"hostname\":\" \"}")
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, "/api/v1/collectors/register", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		request, err := httpserver.ReadJSON[registerRequest](r, maxBodyBytes)
		if err == nil {
			err = request.validate()
		}
		if err == nil {
			require.NotEmpty(t, request.Name)
			require.LessOrEqual(t, len(request.Name), maxNameBytes)
			require.NotContains(t, request.Name+request.Hostname+request.Address+request.Version, "\n")
			_, err = parseCSR(request.CSR)
		}
		if err != nil {
			require.Contains(t, []fault.Class{fault.Invalid, fault.TooLarge}, fault.ClassOf(err))
		}
	})
}

func FuzzParseEnrollmentToken(f *testing.F) {
	f.Add("Bearer pge_" + strings.Repeat("0", 16) + "_" + strings.Repeat("a", 64))
	f.Add("bearer pge__")
	f.Fuzz(func(t *testing.T, authorization string) {
		id, hash, err := parseEnrollmentToken(authorization)
		if err != nil {
			require.Equal(t, fault.Unauthenticated, fault.ClassOf(err))
			return
		}
		require.Len(t, id, 2*tokenIDBytes)
		_, token, _ := strings.Cut(authorization, " ")
		require.Equal(t, sha256.Sum256([]byte(token)), hash)
	})
}
