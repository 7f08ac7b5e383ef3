package testpg

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The databases that Furnish makes besides postgres.
const (
	Shop  = "shop"
	Books = "books"
)

// deadlockDetected is SQLSTATE 40P01.
const deadlockDetected = "40P01"

// Furnish makes the databases Shop and Books with tables, indexes, sequences, a function and rows for Work, a slot
// that nobody reads, and lets every database see pg_stat_statements.
func (s *Server) Furnish() {
	s.tb.Helper()
	s.Exec("postgres", "create database "+Shop, "create database "+Books, "create extension if not exists pg_stat_statements",
		"select pg_create_logical_replication_slot('unread', 'pgoutput')")
	s.Exec(Shop, "create extension pg_stat_statements",
		`create table accounts (id bigint generated always as identity primary key, owner text not null, balance bigint not null, note text)`,
		`insert into accounts (owner, balance, note) select 'owner ' || g % 100, 1000, repeat('x', g % 200) from generate_series(1, 5000) g`,
		`create index accounts_owner on accounts (owner)`,
		`create table entries (id bigserial primary key, account bigint not null, amount int not null, at timestamptz not null default now())
		   with (autovacuum_vacuum_threshold = 50, fillfactor = 50)`,
		`create sequence tickets as smallint`,
		`create function fee(amount int) returns int language sql volatile as 'select amount / 100'`,
		`analyze`)
	s.Exec(Books, "create extension pg_stat_statements",
		`create table books (id int primary key, title text)`, `insert into books select g, 'title ' || g from generate_series(1, 500) g`)
}

// Load is what Work runs.
type Load struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

// Work runs short transactions in Shop and Books, a few dozen a second, until the load is stopped or the test ends.
// While the server is away it tries again and again.
func (s *Server) Work() *Load {
	s.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{stop: cancel}
	for database, one := range map[string]func(context.Context, *pgx.Conn, int) error{Shop: sell, Books: browse} {
		l.done.Go(func() { s.repeat(ctx, database, one) })
	}
	s.tb.Cleanup(l.Stop)
	return l
}

// Stop ends the load and returns when its sessions are closed.
func (l *Load) Stop() {
	l.stop()
	l.done.Wait()
}

// repeat does one thing after the other, with a pause that leaves the machine to the tests.
func (s *Server) repeat(ctx context.Context, database string, one func(context.Context, *pgx.Conn, int) error) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			hangUp(conn)
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, s.URL(database)); err != nil {
				conn = nil
				continue
			}
		}
		if err := one(ctx, conn, n); err != nil {
			hangUp(conn)
		}
	}
}

// sell is one transaction as a shop would do it, and now and then something that costs more.
func sell(ctx context.Context, conn *pgx.Conn, n int) error {
	account := n%4000 + 1000 // the first ones are for Deadlock and Block
	return errors.Join(
		transaction(ctx, conn, n%10 == 9,
			fmt.Sprintf("update accounts set balance = balance - 1 where id = %d", account),
			fmt.Sprintf("insert into entries (account, amount) values (%d, fee(%d)), (%[1]d, 1)", account, n%1000),
			fmt.Sprintf("select count(*) from accounts where owner = 'owner %d'", account%100),
			"select nextval('tickets')"),
		every(n, 25, func() error {
			return transaction(ctx, conn, false, "select sum(balance) from accounts", "delete from entries where id % 3 = 0",
				"set local work_mem = '64kB'", "select count(*) from (select * from accounts order by note, owner offset 0) sorted",
				"create temp table passing on commit drop as select * from accounts limit 500", "select count(*) from passing")
		}))
}

func browse(ctx context.Context, conn *pgx.Conn, n int) error {
	_, err := conn.Exec(ctx, "select title from books where id = $1", n%500)
	return err
}

func every(n, of int, f func() error) error {
	if n%of != of-1 {
		return nil
	}
	return f()
}

func transaction(ctx context.Context, conn *pgx.Conn, undo bool, statements ...string) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	for _, statement := range statements {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
		}
	}
	if undo {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

// Deadlock makes two sessions of Shop lock each other out, and returns when one of them was ended for it.
func (s *Server) Deadlock() {
	s.tb.Helper()
	one, other := s.Connect(Shop), s.Connect(Shop)
	lock := func(conn *pgx.Conn, account int) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := conn.Exec(ctx, fmt.Sprintf("update accounts set balance = balance where id = %d", account))
		return err
	}
	for _, conn := range []*pgx.Conn{one, other} {
		_, err := conn.Exec(context.Background(), "set deadlock_timeout = '50ms'; begin")
		must(s.tb, err)
	}
	must(s.tb, errors.Join(lock(one, 1), lock(other, 2)))
	crossed := make(chan error, 1) // one error, whoever is ended
	go func() { crossed <- lock(one, 2) }()
	err := errors.Join(lock(other, 1), ended(other), <-crossed, ended(one))
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != deadlockDetected {
		s.tb.Fatalf("testpg: no deadlock, but %v", err)
	}
}

func ended(conn *pgx.Conn) error {
	_, err := conn.Exec(context.Background(), "rollback")
	return err
}

// Blocking is one session that waits for another.
type Blocking struct {
	Blocked, Blocking int // their processes
}

// Block makes one session of Shop wait for a row that another holds, until the test ends, and returns when it waits.
func (s *Server) Block() Blocking {
	s.tb.Helper()
	holder, waiter := s.Connect(Shop), s.Connect(Shop)
	_, err := holder.Exec(context.Background(), "begin; update accounts set balance = balance where id = 3")
	must(s.tb, err)
	b := Blocking{Blocked: int(waiter.PgConn().PID()), Blocking: int(holder.PgConn().PID())}
	s.background(waiter, "update accounts set balance = balance where id = 3")
	s.eventually("one session waits for the other", func() bool {
		return Value[bool](s, "postgres", "select $1::int = any(pg_blocking_pids($2))", b.Blocking, b.Blocked)
	})
	return b
}

// Linger leaves a transaction of a database open that has written and then does nothing, until the test ends, and
// returns its process.
func (s *Server) Linger(database string, statements ...string) int {
	s.tb.Helper()
	conn := s.Connect(database)
	for _, statement := range append([]string{"begin", "select txid_current()"}, statements...) {
		_, err := conn.Exec(context.Background(), statement)
		must(s.tb, err)
	}
	return int(conn.PgConn().PID())
}

// Toil vacuums a table of Shop as slowly as can be, until the test ends, and returns when it has begun.
func (s *Server) Toil() {
	s.tb.Helper()
	conn := s.Connect(Shop)
	_, err := conn.Exec(context.Background(), "set vacuum_cost_delay = 100; set vacuum_cost_limit = 1")
	must(s.tb, err)
	s.background(conn, "vacuum (freeze, disable_page_skipping) accounts")
	s.eventually("the vacuum runs", func() bool {
		return Value[bool](s, "postgres", "select exists (select from pg_stat_progress_vacuum)")
	})
}

// background runs a statement that the end of the test cancels, unless the server ends it before.
func (s *Server) background(conn *pgx.Conn, statement string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = conn.Exec(ctx, statement)
	}()
	s.tb.Cleanup(func() {
		cancel()
		<-done
	})
}

// Crowd opens sessions of a role until the server refuses one more, and returns what closes them.
func (s *Server) Crowd(role string) (leave func()) {
	s.tb.Helper()
	var all []*pgx.Conn
	leave = sync.OnceFunc(func() {
		for _, conn := range all {
			hangUp(conn)
		}
	})
	s.tb.Cleanup(leave)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		conn, err := pgx.Connect(ctx, s.URLAs(role, "postgres"))
		cancel()
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "53300" { // too_many_connections
			return leave
		}
		must(s.tb, err)
		all = append(all, conn)
	}
}
