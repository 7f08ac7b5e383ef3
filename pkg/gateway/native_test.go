package gateway_test

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/gateway"
)

// nativePush makes a push of a section of each number of rows.
func (c *sender) nativePush(rows ...int) *native.Push {
	c.stack.t.Helper()
	id, err := uuid.NewV7()
	require.NoError(c.stack.t, err)
	p := &native.Push{CollectorID: c.id, Hostname: "db1", Version: "1.0", BatchID: id}
	for _, n := range rows {
		s := batch.Section{
			Family: "narrow", Server: "db1", ServerID: batch.ServerID(c.id, "db1"), Rows: n,
			Columns: []batch.Column{{Name: "v", Type: catalogue.BigInt}},
		}
		for i := range n {
			s.Tuples = batch.AppendInt64(batch.AppendTuple(s.Tuples, 3, time.Now(), s.ServerID), int64(i))
		}
		p.Sections = append(p.Sections, s)
	}
	return p
}

// pushNative sends a body as one in the native form.
func (c *sender) pushNative(body []byte, header ...string) (int, http.Header, string) {
	c.stack.t.Helper()
	return c.push(string(body), append([]string{"Content-Type", native.ContentType}, header...)...)
}

func TestANativePushLiesOnTheStreamAsItWasSent(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	encode := map[string]func(string) string{
		"":     func(b string) string { return b },
		"gzip": func(b string) string { return gzipped(t, b) },
		"zstd": func(b string) string { return zstdded(t, b) },
	}
	want := map[uuid.UUID]*native.Push{}
	for encoding, f := range encode {
		p := c.nativePush(3, 400)
		want[p.BatchID] = p
		status, _, text := c.pushNative([]byte(f(string(p.Append(nil)))), "Content-Encoding", encoding)
		require.Equal(t, http.StatusAccepted, status, text)
		got := answered(t, text)
		require.Equal(t, p.BatchID.String(), got["batch_id"])
		require.EqualValues(t, 2, got["metrics_accepted"])
		require.EqualValues(t, 403, got["rows_accepted"])
		require.Equal(t, false, got["duplicate"])

		_, _, text = c.pushNative(p.Append(nil))
		require.Equal(t, true, answered(t, text)["duplicate"])
	}
	for _, b := range s.batches(len(encode)) {
		require.True(t, b.Intact())
		p := want[b.ID]
		require.NotNil(t, p)
		require.Len(t, b.Sections, 2)
		for i := range b.Sections {
			require.Equal(t, p.Sections[i].Tuples, b.Sections[i].Tuples)
			require.Equal(t, p.Sections[i].ServerID, b.Sections[i].ServerID)
		}
	}
	require.EqualValues(t, 3*403, s.value("pganalytics_gateway_rows_total", "native"))
	require.Zero(t, s.value("pganalytics_gateway_rows_total", "json"))
	s.requireAllGivenBack()
}

// The content type decides, not what the body looks like.
func TestABodyIsReadAsWhatItSaysItIs(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	status, _, text := c.push(string(c.nativePush(1).Append(nil)))
	require.Equal(t, http.StatusBadRequest, status)
	require.Contains(t, text, `"code":"invalid_json"`)
	status, _, text = c.pushNative([]byte(c.body(rows(1))))
	require.Equal(t, http.StatusBadRequest, status)
	require.Contains(t, text, `"code":"protobuf_invalid"`)
	s.batches(0)
}

// Whoever has a credential can write of the own servers, and nothing that the
// database would choke on.
func TestAHostileNativePushIsRefused(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c, victim := s.enrol(), s.enrol()
	second := func(p *native.Push) []byte { return p.Sections[0].Tuples[len(p.Sections[0].Tuples)/2:] }
	foreign := batch.ServerID(victim.id, "db1")
	for name, test := range map[string]struct {
		change func(p *native.Push)
		status int
		code   string
	}{
		"another collector":               {func(p *native.Push) { p.CollectorID = victim.id }, http.StatusForbidden, "collector_id_mismatch"},
		"another collector's server":      {func(p *native.Push) { p.Sections[0].ServerID = foreign }, http.StatusBadRequest, "server_id_mismatch"},
		"another collector's, in one row": {func(p *native.Push) { copy(second(p)[18:], foreign[:]) }, http.StatusBadRequest, "server_id_mismatch"},
		"infinite time":                   {func(p *native.Push) { binary.BigEndian.PutUint64(second(p)[6:], math.MaxInt64) }, http.StatusBadRequest, "time_out_of_range"},
		"lying length":                    {func(p *native.Push) { binary.BigEndian.PutUint32(second(p)[34:], math.MaxInt32) }, http.StatusBadRequest, "tuples_malformed"},
		"lying count":                     {func(p *native.Push) { p.Sections[0].Rows = math.MaxInt }, http.StatusBadRequest, "rows_mismatch"},
		"end of COPY":                     {func(p *native.Push) { binary.BigEndian.PutUint16(second(p), math.MaxUint16) }, http.StatusBadRequest, "wrong_arity"},
		"SQL for a family":                {func(p *native.Push) { p.Sections[0].Family = `narrow"; drop table x` }, http.StatusBadRequest, "unknown_family"},
		"SQL for a column":                {func(p *native.Push) { p.Sections[0].Columns[0].Name = `v"` }, http.StatusBadRequest, "unknown_column"},
	} {
		p := c.nativePush(2)
		test.change(p)
		status, _, text := c.pushNative(p.Append(nil))
		require.Equal(t, test.status, status, name)
		require.Contains(t, text, `"code":"`+test.code+`"`, name)
		require.NotContains(t, text, "drop table", name)
	}
	whole := c.nativePush(2).Append(nil)
	for n := range whole {
		status, _, text := c.pushNative(whole[:n])
		require.Equal(t, http.StatusBadRequest, status, "cut at %d: %s", n, text)
	}
	s.batches(0)
	s.requireAllGivenBack()
}

// A refused section is in memory as long as the body is that the others lie in.
func TestTheWholeBodyIsBookedWhileItsTuplesAreInUse(t *testing.T) {
	t.Parallel()
	g := &gate{entered: make(chan context.Context, 1), open: make(chan struct{})}
	s := newStack(t, options{gateway: gateway.Config{Limits: smallLimits()}, publisher: func(p *bus.Publisher) gateway.Publisher { g.Publisher = p; return g }})
	c := s.enrol()
	p := c.nativePush(1, 4000)
	p.Sections[1].Family = "unknown"
	body := p.Append(nil)
	done := make(chan int, 1)
	go func() {
		req := c.request(t.Context(), strings.NewReader(string(body)), "Content-Type", native.ContentType)
		status := 0
		if resp, err := c.newClient().Do(req); err == nil {
			status = resp.StatusCode
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		done <- status
	}()
	<-g.entered
	require.GreaterOrEqual(t, s.value("pganalytics_gateway_in_flight_bytes"), float64(len(body)))
	close(g.open)
	require.Equal(t, http.StatusAccepted, <-done)
	s.requireAllGivenBack()
}
