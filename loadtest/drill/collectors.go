package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pganalytics/loadtest/internal/fleet"
)

const family = `
name: drill
description: Rows of the drill.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [batch, n]
columns:
  - {name: batch, type: uuid, kind: label, help: Which batch.}
  - {name: n, type: integer, kind: label, help: Which row of it.}
  - {name: body, type: text, kind: info, help: What only this row says.}
queries:
  - {min_version: 13, sql: "select 1"}
`

// sum is what a row adds to its batch's checksum.
func sum(batch uuid.UUID, n int32, body string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint32(batch[:], uint32(n))) // never fails
	_, _ = h.Write([]byte(body))
	return h.Sum64()
}

// taken is a batch that its sender was told is taken.
type taken struct {
	Batch uuid.UUID `json:"batch"`
	Rows  int       `json:"rows"`
	Sum   uint64    `json:"sum"` // of its rows' sums
}

// journal is the senders' memory: a line is on disk before the next batch of
// its collector is sent.
type journal struct {
	mu   sync.Mutex
	file *os.File
}

func (j *journal) note(t taken) error {
	line, err := json.Marshal(t)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return j.file.Sync()
}

// read returns every line.
func (j *journal) read() (all []taken, err error) {
	file, err := os.Open(j.file.Name())
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	for lines := json.NewDecoder(file); lines.More(); {
		var t taken
		if err := lines.Decode(&t); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// collectors push, each one batch after the other, and repeat each until it is
// taken.
type collectors struct {
	o       options
	journal *journal
	pause   atomic.Int64
	taken   atomic.Int64
	full    atomic.Int64 // answers that the stream takes no more
	quit    chan struct{}
	group   *errgroup.Group
}

func (c *collectors) begin(ctx context.Context, senders []*fleet.Sender) {
	c.pause.Store(int64(c.o.pause))
	c.group, ctx = errgroup.WithContext(ctx)
	for _, s := range senders {
		c.group.Go(func() error { return c.push(ctx, s) })
	}
}

// end returns when each collector was told that its last batch is taken.
func (c *collectors) end() error {
	close(c.quit)
	return c.group.Wait()
}

func (c *collectors) push(ctx context.Context, s *fleet.Sender) error {
	for {
		select {
		case <-c.quit:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(c.pause.Load())):
		}
		body, t, err := c.batch(s.ID)
		if err != nil {
			return err
		}
		if err := c.insist(ctx, s, body); err != nil {
			return err
		}
		if err := c.journal.note(t); err != nil {
			return err
		}
		c.taken.Add(1)
	}
}

// again is how long a collector waits after a refusal.
const again = 200 * time.Millisecond

// insist repeats whatever the answer is, and whatever the outcome was.
func (c *collectors) insist(ctx context.Context, s *fleet.Sender, body []byte) error {
	for {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := s.Push(one, body, c.o.rows)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w; the last answer was: %w", ctx.Err(), err)
		case errors.Is(err, fleet.ErrBusy):
			c.full.Add(1)
		}
		time.Sleep(again)
	}
}

func (c *collectors) batch(collector uuid.UUID) ([]byte, taken, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, taken{}, err
	}
	t := taken{Batch: id, Rows: c.o.rows}
	rows := make([][]any, c.o.rows)
	for n := range rows {
		var random [100]byte
		_, _ = rand.Read(random[:]) // never fails
		body := hex.EncodeToString(random[:])
		rows[n] = []any{id, n, body}
		t.Sum += sum(id, int32(n), body)
	}
	now := time.Now().UTC()
	body, err := json.Marshal(map[string]any{
		"collector_id": collector, "hostname": "drill", "version": "drill", "timestamp": now, "batch_id": id, "metrics_count": 1,
		"metrics": []any{map[string]any{
			"type": "drill", "server": "db", "timestamp": now, "columns": []string{"batch", "n", "body"}, "rows": rows,
		}},
	})
	return body, t, err
}
