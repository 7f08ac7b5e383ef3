package main

import (
	"bytes"
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
)

// baselineRows is the size of one COPY, the same as of the ingester's loads.
const baselineRows = 20_000

// copyStreams encodes the rows of all payloads, in the order in which they are
// pushed, as COPYs. They are of other servers than the pushed ones: a second
// row of the same key is cheaper for the index.
func (s *system) copyStreams(sh shape, loads []payload, base time.Time) [][]byte {
	perCopy := max(1, baselineRows/sh.rows)
	var streams [][]byte
	for from := 0; from < len(loads); from += perCopy {
		stream := bytes.Clone(batch.CopyHeader)
		for _, p := range loads[from:min(from+perCopy, len(loads))] {
			stream = append(stream, p.tuples(base.Add(p.after), batch.ServerID(s.sender.ID, "copied "+p.server))...)
		}
		streams = append(streams, append(stream, batch.CopyTrailer...))
	}
	return streams
}

// copyAll copies the streams over as many connections as the ingester has, and
// returns the time it took.
func (s *system) copyAll(ctx context.Context, sql string, streams [][]byte) (time.Duration, error) {
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for n := range connections {
		g.Go(func() error {
			conn, err := s.db.pool.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			for i := n; i < len(streams); i += connections {
				if _, err := conn.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(streams[i]), sql); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(start), err
}
