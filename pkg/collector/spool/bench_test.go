package spool

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// BenchmarkAppend is mostly the disk's fsync.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s, body := filled(b, 0, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				_, err := s.Append(func(Stamp) ([]byte, error) { return body, nil })
				require.NoError(b, err)
			}
		})
	}
}

// BenchmarkDrain reads and settles a batch, as the pusher does around a push.
func BenchmarkDrain(b *testing.B) {
	const size = 4 << 10
	s, body := filled(b, 0, size)
	b.SetBytes(size)
	for b.Loop() {
		if s.Stats().Unsent == 0 {
			b.StopTimer()
			for range 100 {
				_, err := s.Append(func(Stamp) ([]byte, error) { return body, nil })
				require.NoError(b, err)
			}
			b.StartTimer()
		}
		r, _, err := s.Oldest()
		require.NoError(b, err)
		require.NoError(b, s.Accepted(r, Answer{Rows: 1}))
	}
}

// BenchmarkOpen is a start with 16 MiB that wait and 64 MiB that are kept.
func BenchmarkOpen(b *testing.B) {
	s, _ := filled(b, 80, 1<<20)
	for range 64 {
		r, _, err := s.Oldest()
		require.NoError(b, err)
		require.NoError(b, s.Accepted(r, Answer{}))
	}
	require.NoError(b, s.Close())
	for b.Loop() {
		s, err := Open(s.cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.NoError(b, err)
		require.NoError(b, s.Close())
	}
}

func filled(b *testing.B, n, size int) (*Spool, []byte) {
	b.Helper()
	s, err := Open(Config{Dir: b.TempDir(), MaxBytes: 1 << 40}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(b, err)
	b.Cleanup(func() { _ = s.Close() })
	body := make([]byte, size)
	for range n {
		_, err := s.Append(func(Stamp) ([]byte, error) { return body, nil })
		require.NoError(b, err)
	}
	return s, body
}
