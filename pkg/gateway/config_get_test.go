package gateway_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/identity"
	"pganalytics/pkg/policy/pulled"
)

// config asks for a collector's configuration.
func (c *sender) config(id uuid.UUID, query string, header ...string) (int, http.Header, string) {
	c.stack.t.Helper()
	req, err := http.NewRequestWithContext(c.stack.t.Context(), http.MethodGet, c.stack.server.URL()+"/api/v1/config/"+id.String()+query, http.NoBody)
	require.NoError(c.stack.t, err)
	req.Header.Set("Authorization", "Bearer "+c.token)
	for i := 0; i < len(header); i += 2 {
		if req.Header.Set(header[i], header[i+1]); header[i+1] == "" {
			req.Header.Del(header[i])
		}
	}
	return c.send(req)
}

// configured publishes a version and waits until the gateway has it.
func (s *stack) configured(c *sender, v pulled.Version) {
	s.t.Helper()
	require.NoError(s.t, pulled.Publish(s.t.Context(), s.bus.ConfigBucket(), v))
	require.Eventually(s.t, func() bool {
		status, _, text := c.config(c.id, "")
		return status == http.StatusOK && strings.Contains(text, fmt.Sprintf(`"version":%d,`, v.Number))
	}, 60*time.Second, 5*time.Millisecond)
}

func TestACollectorGetsItsOwnConfigurationOnly(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c, other := s.enrol(), s.enrol()
	s.configured(c, pulled.Version{Number: 1, Collector: c.id, Document: "preset: minimal\n"})

	status, header, text := c.config(c.id, "")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "application/json", header.Get("Content-Type"))
	require.JSONEq(t, fmt.Sprintf(`{"collector_id": %q, "version": 1, "document": "preset: minimal\n"}`, c.id), text)

	for what, got := range map[string]func() (int, http.Header, string){
		"another's": func() (int, http.Header, string) { return other.config(c.id, "") },
		"nobody's":  func() (int, http.Header, string) { return c.config(uuid.Nil, "") },
	} {
		status, _, text := got()
		require.Equal(t, http.StatusForbidden, status, what)
		require.NotContains(t, text, "minimal")
	}
	status, _, _ = c.config(c.id, "", "Authorization", "")
	require.Equal(t, http.StatusUnauthorized, status)
	c.set(identity.Disabled)
	require.Eventually(t, func() bool {
		status, _, _ := c.config(c.id, "")
		return status == http.StatusForbidden
	}, 60*time.Second, 5*time.Millisecond)
}

func TestWhatWasNeverSetIsNotToldAsEmpty(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	require.Eventually(t, func() bool {
		status, _, text := c.config(c.id, "")
		return status == http.StatusNotFound && strings.Contains(text, "no_config")
	}, 60*time.Second, 5*time.Millisecond)
	s.configured(c, pulled.Version{Number: 1, Document: "preset: minimal"})
	s.configured(c, pulled.Version{Number: 2})
	_, _, text := c.config(c.id, "")
	require.JSONEq(t, fmt.Sprintf(`{"collector_id": %q, "version": 2, "document": ""}`, c.id), text)
}

func TestTheTagOfAConfigurationIsOfAllThatIsSaid(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	s.configured(c, pulled.Version{Number: 1, Collector: c.id, Document: "{}"})
	_, header, _ := c.config(c.id, "")
	tag := header.Get("ETag")
	require.Regexp(t, `^"[A-Za-z0-9_-]{22}"$`, tag)
	for _, condition := range []string{tag, `"x", ` + tag, "W/" + tag, "*"} {
		status, header, text := c.config(c.id, "", "If-None-Match", condition)
		require.Equal(t, http.StatusNotModified, status, condition)
		require.Equal(t, tag, header.Get("ETag"))
		require.Empty(t, text)
	}
	status, _, _ := c.config(c.id, "", "If-None-Match", `"x"`)
	require.Equal(t, http.StatusOK, status)

	asked, err := pulled.Ask(t.Context(), s.bus.ConfigBucket(), c.id, pulled.Resend{ID: uuid.New(), Ranges: []pulled.Range{{First: 4, Last: 7}}, By: "cli:root"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		status, _, _ := c.config(c.id, "", "If-None-Match", tag)
		return status == http.StatusOK
	}, 60*time.Second, 5*time.Millisecond)
	var answer pulled.Answer
	_, _, text := c.config(c.id, "")
	require.NoError(t, json.Unmarshal([]byte(text), &answer))
	require.Equal(t, asked.ID, answer.Resend.ID)
	require.Equal(t, asked.Ranges, answer.Resend.Ranges)
	require.NotContains(t, text, "cli:root")
}

func TestAPushTellsTheNextConfiguration(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	status, _, text := c.push(c.body(rows(1)))
	require.Equal(t, http.StatusAccepted, status)
	require.EqualValues(t, 0, answered(t, text)["next_config_version"])
	s.configured(c, pulled.Version{Number: 7, Document: "{}"})
	_, _, text = c.push(c.body(rows(2)))
	require.EqualValues(t, 7, answered(t, text)["next_config_version"])
}

func TestWhatACollectorSaysIsKeptAndDoesNotDecideItsAnswer(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	s.configured(c, pulled.Version{Number: 3, Collector: c.id, Document: "{}"})
	id := uuid.New()
	said := url.Values{
		"applied": {"2"}, "refused": {"3"}, "detail": {"line 1\x1b[2J\n" + strings.Repeat("ü", 2000)},
		"resent": {id.String()}, "found": {"4"}, "missing": {"5"},
	}
	status, _, _ := c.config(c.id, "?"+said.Encode())
	require.Equal(t, http.StatusOK, status)
	state, err := pulled.StateOf(t.Context(), s.bus.ConfigBucket(), c.id)
	require.NoError(t, err)
	require.Equal(t, pulled.Resent{ID: id, Found: 4, Missing: 5}, *state.Resent)
	require.EqualValues(t, 2, state.Applied)
	require.EqualValues(t, 3, state.Refused)
	require.True(t, strings.HasPrefix(state.Detail, "line 1 [2J ü"), state.Detail)
	require.LessOrEqual(t, len(state.Detail), pulled.MaxDetail)

	for _, query := range []string{"?applied=-1", "?applied=", "?applied=1&refused=x", "?applied=1&resent=1", "?applied=9223372036854775808", "?%zz"} {
		status, _, text := c.config(c.id, query)
		require.Equal(t, http.StatusBadRequest, status, query)
		require.Contains(t, text, "request_invalid")
	}

	s.nats.Stop() // nothing can be kept now
	status, _, text := c.config(c.id, "?applied=3")
	require.Equal(t, http.StatusOK, status, text)
	require.InDelta(t, 1, s.value("pganalytics_gateway_config_reports_total", "failed"), 0)
}
