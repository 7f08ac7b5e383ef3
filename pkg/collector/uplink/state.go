package uplink

import "time"

// State is what the backend said last.
type State struct {
	AnsweredAt time.Time `json:"answered_at,omitzero"` // when a batch was last accepted or refused
	Trouble    *Trouble  `json:"trouble,omitempty"`    // why the spool holds; nil: it does not
	Renewal    *Trouble  `json:"renewal,omitempty"`    // why the certificate could not be renewed; nil: it could
}

// Trouble is a no, or no answer.
type Trouble struct {
	Result   string    `json:"result"`           // as in pushes_total
	Status   int       `json:"status,omitempty"` // of the answer; 0: there was none
	Code     string    `json:"code,omitempty"`   // of the problem; empty: the answer was not the backend's
	Error    string    `json:"error"`
	Do       string    `json:"do,omitempty"` // what people have to do; empty: it heals itself
	Since    time.Time `json:"since"`        // of the first in a row
	Failures int       `json:"failures"`     // in a row
	NextTry  time.Time `json:"next_try,omitzero"`
}

// State returns what the backend said last.
func (p *Pusher) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state // what its pointers point to never changes
	s.Renewal = p.client.renewalTrouble()
	return s
}

func (p *Pusher) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.AnsweredAt, p.state.Trouble = time.Now().UTC(), nil
}

func (p *Pusher) held(v verdict, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Trouble = p.state.Trouble.after(v, next)
}

// after returns the trouble that follows on t, which may be nil.
func (t *Trouble) after(v verdict, next time.Time) *Trouble {
	now := Trouble{
		Result: string(v.result), Status: v.status, Code: v.code, Error: v.err.Error(),
		Do: advise(v.status, v.code), Since: time.Now().UTC(), Failures: 1, NextTry: next.UTC(),
	}
	if t != nil {
		now.Since, now.Failures = t.Since, t.Failures+1
	}
	return &now
}

// renewed notes what came of a renewal. The caller holds the lock.
func (c *Client) renewed(err error) {
	if err == nil {
		c.trouble = nil
		return
	}
	c.trouble = c.trouble.after(judge(err, false), time.Time{})
}

func (c *Client) renewalTrouble() *Trouble {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trouble
}
