package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// workload makes the statistics of a server move until ctx ends: a small shop
// that inserts, updates, reads and now and then deletes.
func workload(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const tables = `
create table if not exists customer (id bigint generated always as identity primary key, name text not null, balance bigint not null default 0);
create table if not exists purchase (id bigint generated always as identity primary key, customer_id bigint not null, amount bigint not null, at timestamptz not null default now());
create index if not exists purchase_customer on purchase (customer_id);
insert into customer (name) select 'customer ' || n from generate_series(1, 1000) n;`
	if _, err := conn.Exec(ctx, tables); err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := trade(ctx, conn); err != nil && ctx.Err() == nil {
			return fmt.Errorf("workload: %w", err)
		}
	}
}

func trade(ctx context.Context, conn *pgx.Conn) error {
	customer, amount := 1+rand.IntN(1000), rand.IntN(10_000)
	var b pgx.Batch
	b.Queue("insert into purchase (customer_id, amount) values ($1, $2)", customer, amount)
	b.Queue("update customer set balance = balance - $2 where id = $1", customer, amount)
	b.Queue("select count(*), sum(amount) from purchase where customer_id = $1", customer)
	if rand.IntN(50) == 0 {
		b.Queue("delete from purchase where at < now() - interval '10 seconds'")
	}
	return conn.SendBatch(ctx, &b).Close()
}
