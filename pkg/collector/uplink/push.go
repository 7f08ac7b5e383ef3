package uplink

import (
	"context"
	"errors"
	"net/http"
	"time"

	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/collector/spool"
)

// result is what came of one attempt to push.
type result string

const (
	accepted        result = "accepted"
	duplicate       result = "duplicate"       // accepted, and the stream had it already
	refused         result = "refused"         // for good: to the dead letters
	unauthenticated result = "unauthenticated" // held, like all that follow
	forbidden       result = "forbidden"
	throttled       result = "throttled"
	clockSkew       result = "clock_skew"
	unavailable     result = "unavailable"
	unexpected      result = "unexpected" // not an answer that the gateway gives
	network         result = "network"    // no answer
)

// verdict is the answer to one batch.
type verdict struct {
	result
	answer     spool.Answer  // when accepted
	refusal    spool.Refusal // when refused
	retryAfter time.Duration // when held
	err        error         // when refused or held
	status     int           // of the answer when refused or held; 0: there was none
	code       string        // of the problem; empty: the answer was not the backend's
}

// push sends one batch once; with a token that turns out to be stale, once
// more with a fresh one.
func (c *Client) push(ctx context.Context, body []byte) verdict {
	began := time.Now()
	v, token := c.attempt(ctx, body, "")
	if v.result == unauthenticated && token != "" {
		v, _ = c.attempt(ctx, body, token)
	}
	c.metrics.push(v.result, time.Since(began))
	return v
}

func (c *Client) attempt(ctx context.Context, body []byte, stale string) (verdict, string) {
	client, url, token, err := c.credentials(ctx, stale)
	if err != nil {
		return judge(err, false), ""
	}
	text, err := do(ctx, client, request{
		method: http.MethodPost, url: at(url, "metrics/push"), token: token, body: body, kind: native.ContentType, encoding: "zstd",
	}, http.StatusAccepted)
	if err != nil {
		return judge(err, true), token
	}
	var answer acceptance
	if err := decode(text, &answer); err != nil {
		return verdict{result: unexpected, err: err}, token
	}
	if answer.Status != "accepted" {
		return verdict{result: unexpected, err: errors.New("answer has status 202 and is not the gateway's")}, token
	}
	c.next.tell(answer.NextConfig, time.Duration(answer.NextCheckIn)*time.Second)
	v := verdict{result: accepted, answer: spool.Answer{
		Rows: answer.Rows, Duplicate: answer.Duplicate,
		Rejected: len(answer.Rejected) + answer.RejectedMore, Text: text,
	}}
	v.answer.RestID, v.answer.Rest = answer.rest(body)
	if answer.Duplicate {
		v.result = duplicate
	}
	return v, token
}

// acceptance is the answer to an accepted batch.
type acceptance struct {
	Status       string      `json:"status"`
	Rows         int         `json:"rows_accepted"`
	Duplicate    bool        `json:"duplicate"`
	Rejected     []rejection `json:"rejected"`
	RejectedMore int         `json:"rejected_more"`
	NextConfig   int64       `json:"next_config_version"`
	NextCheckIn  int         `json:"next_check_in_seconds"`
}

// rejection is one item that was not accepted.
type rejection struct {
	Index int `json:"index"`
}

// judge decides what an error means for the batch. Only the gateway's own word
// about the batch itself gives it up; everything else holds it.
func judge(err error, aboutBatch bool) verdict {
	p, ok := errors.AsType[*problem](err)
	if !ok {
		return verdict{result: network, err: err}
	}
	v := verdict{err: err, retryAfter: p.RetryAfter, result: unexpected, status: p.Status, code: p.Code}
	switch {
	case p.Status == http.StatusUnauthorized:
		v.result = unauthenticated
	case p.Status == http.StatusForbidden:
		v.result = forbidden
	case p.Status == http.StatusTooManyRequests:
		v.result = throttled
	case p.Status >= 500:
		v.result = unavailable
	case p.Status == http.StatusUnprocessableEntity && p.Code == "clock_skew":
		v.result = clockSkew
	case aboutBatch && p.Code != "" && final(p.Status):
		v.result = refused
		v.refusal = spool.Refusal{Status: p.Status, Code: p.Code, Text: p.Text}
	}
	return v
}

// final reports whether the same bytes will never be accepted.
func final(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusUnprocessableEntity
}
