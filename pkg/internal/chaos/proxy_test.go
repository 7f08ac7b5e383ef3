package chaos

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy is a wire that can be cut: between an ingester and the database or the
// stream. Two of its cuts need to know PostgreSQL's protocol, and so fall
// exactly where chance would seldom put them.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu      sync.Mutex
	links   map[*link]struct{}
	cut     bool          // nothing connects
	silence chan struct{} // nothing passes until it is closed
	hold    *hold

	// COMMITs that still get lost on their way there, and answers to them on
	// their way back.
	requests, answers int
	lost              int    // of both, so far
	commit            []byte // name of the statement, where it is prepared
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn
	copying        int // bytes of the COPY that passed; -1 outside of one
}

func (l *link) close() { _ = l.client.Close(); _ = l.server.Close() }

// hold stops a COPY half way.
type hold struct {
	after    int
	reached  chan struct{}
	released chan struct{}
	taken    bool // by a link
}

// newProxy returns a proxy and the address to use instead of target's.
func newProxy(t *testing.T, target string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(target)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: listener, target: u.Host, links: map[*link]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.heal()
		p.mu.Lock()
		p.cut = true
		p.release()
		p.closeAll()
		p.mu.Unlock()
		p.wg.Wait()
	})
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // the test is over
		}
		p.wg.Go(func() { p.carry(client) })
	}
}

func (p *proxy) carry(client net.Conn) {
	p.wait()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client: client, server: server, copying: -1}
	p.mu.Lock()
	if p.cut {
		l.close()
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.pump(server, client, p.up) })
	both.Go(func() { l.pump(client, server, p.down) })
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

var errCut = errors.New("cut")

func (l *link) pump(to io.Writer, from io.Reader, look func(*link, []byte) error) {
	defer l.close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if look(l, buf[:n]) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// up looks at what the client says.
func (p *proxy) up(l *link, data []byte) error {
	p.wait()
	p.mu.Lock()
	if p.asksToCommit(data) && p.requests > 0 {
		p.requests--
		p.lost++
		p.mu.Unlock()
		return errCut
	}
	h := p.hold
	if h == nil || h.taken {
		p.mu.Unlock()
		return nil
	}
	switch {
	case l.copying >= 0:
		l.copying += len(data)
	case bytes.Contains(data, []byte(" from stdin (format binary)\x00")):
		l.copying = 0
	}
	h.taken = l.copying >= h.after
	taken := h.taken
	p.mu.Unlock()
	if taken {
		close(h.reached)
		<-h.released
	}
	return nil
}

// asksToCommit sees COMMIT as text, or by the name under which it was prepared.
func (p *proxy) asksToCommit(data []byte) bool {
	end := bytes.Index(data, []byte("commit\x00"))
	if end < 0 {
		return p.commit != nil && bytes.Contains(data, p.commit)
	}
	if start := bytes.LastIndex(data[:end], []byte("stmtcache_")); start >= 0 && end-start < 100 {
		p.commit = bytes.Clone(data[start:end])
	}
	return true
}

// down looks at what the server says.
func (p *proxy) down(l *link, data []byte) error {
	p.wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.Contains(data, []byte("COPY ")) {
		l.copying = -1 // it is over, and was shorter than the hold
	}
	if p.answers > 0 && bytes.Contains(data, []byte("COMMIT\x00")) {
		p.answers--
		p.lost++
		return errCut // it is committed, and nobody hears of it
	}
	return nil
}

// wait waits while there is silence.
func (p *proxy) wait() {
	p.mu.Lock()
	silence := p.silence
	p.mu.Unlock()
	if silence != nil {
		<-silence
	}
}

func (p *proxy) closeAll() {
	for l := range p.links {
		l.close()
	}
}

// disconnect ends all connections and lets none be made until heal.
func (p *proxy) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.closeAll()
}

// hush lets nothing pass, and ends no connection, until heal: as a switch that
// drops every packet.
func (p *proxy) hush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silence = make(chan struct{})
}

func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	if p.silence != nil {
		close(p.silence)
		p.silence = nil
	}
}

// loseCommits lets so many COMMITs get lost on their way to the server, and
// so many answers on their way back, each with its connection.
func (p *proxy) loseCommits(requests, answers int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests, p.answers = requests, answers
}

func (p *proxy) commitsLost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// holdCopy stops the next COPY once it has sent after bytes. The channel is
// closed when it stands.
func (p *proxy) holdCopy(after int) (reached <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = &hold{after: after, reached: make(chan struct{}), released: make(chan struct{})}
	return p.hold.reached
}

func (p *proxy) releaseCopy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release()
}

func (p *proxy) release() {
	if p.hold != nil {
		close(p.hold.released)
		p.hold = nil
	}
}
