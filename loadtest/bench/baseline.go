package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
)

// baselineRows is the size of one COPY, the same as of the ingester's loads.
const baselineRows = 20_000

// copyAll copies the same rows, encoded beforehand, into the same hypertable
// over as many connections as the ingester has, and returns the time it took.
func (s *system) copyAll(ctx context.Context, sh shape, loads []payload) (time.Duration, error) {
	server, now := uuid.New(), time.Now().UTC().Truncate(time.Microsecond)
	perCopy := max(1, baselineRows/sh.rows)
	var streams [][]byte
	for from := 0; from < len(loads); from += perCopy {
		stream := bytes.Clone(batch.CopyHeader)
		for i := from; i < min(from+perCopy, len(loads)); i++ {
			at := now.Add(time.Duration(i) * time.Millisecond)
			stream = append(stream, loads[i].tuples(at, server)...)
		}
		streams = append(streams, append(stream, batch.CopyTrailer...))
	}
	names := []string{"time", "server_id"}
	for _, c := range sh.columns() {
		names = append(names, c.Name)
	}
	sql := fmt.Sprintf("copy metrics.%s (%s) from stdin (format binary)", sh.family, strings.Join(names, ","))

	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for n := range connections {
		g.Go(func() error {
			conn, err := s.pool.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			for i := n; i < len(streams); i += connections {
				if _, err := conn.Conn().PgConn().CopyFrom(ctx, io.Reader(bytes.NewReader(streams[i])), sql); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(start), err
}
