package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// bareStream is a stream of the same server on which nothing else lies.
type bareStream struct {
	nc         *nats.Conn
	js         jetstream.JetStream
	one, batch []byte // messages as large as those of one row and of a batch
}

const bareSubject = "bench.bare"

func (s *system) openBare(ctx context.Context) (b *bareStream, err error) {
	b = &bareStream{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, m := range []struct {
		shape shape
		to    *[]byte
	}{{narrow.withRows(1), &b.one}, {narrow, &b.batch}} {
		message, err := m.shape.batch(s.sender.ID, m.shape.payload(0, rnd), time.Now())
		if err != nil {
			return nil, err
		}
		if *m.to, err = message.Marshal(); err != nil {
			return nil, err
		}
	}
	password, err := os.ReadFile(filepath.Join(s.data(), "nats", "password"))
	if err != nil {
		return nil, err
	}
	if b.nc, err = nats.Connect(s.endpoints.NATS, nats.UserInfo("operator", string(password))); err != nil {
		return nil, err
	}
	if b.js, err = jetstream.New(b.nc); err == nil {
		_, err = b.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: "BARE", Subjects: []string{bareSubject}, Storage: jetstream.FileStorage, MaxBytes: 256 << 20,
		})
	}
	if err != nil {
		b.nc.Close()
		return nil, err
	}
	return b, nil
}

func (b *bareStream) publish(ctx context.Context, l *latencies, to *[]time.Duration, data []byte) error {
	began := time.Now()
	if _, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: bareSubject, Data: data}); err != nil {
		return fmt.Errorf("bare publish: %w", err)
	}
	l.add(to, time.Since(began))
	return nil
}
