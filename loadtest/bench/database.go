package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/service"
	"pganalytics/schemas"
)

// database is one that a benchmark has made for itself.
type database struct {
	server   string // URL of the server's database that was given
	name     string
	pool     *pgxpool.Pool // of the baseline, and to look
	postgres int           // pid of the server's main process; 0 when it runs elsewhere
}

// newDatabase makes a database with all tables on the server of DATABASE_URL.
func newDatabase(ctx context.Context) (d *database, err error) {
	d = &database{server: os.Getenv("DATABASE_URL"), name: "pganalytics_bench_" + strings.ToLower(rand.Text()[:8])}
	if d.server == "" {
		return nil, errors.New("DATABASE_URL is not set; make starts a private server")
	}
	if err := d.exec(ctx, "create database "+d.name); err != nil {
		return nil, err
	}
	made := d
	defer func() {
		if err != nil {
			d, err = nil, errors.Join(err, made.drop())
		}
	}()
	cfg, err := pgxpool.ParseConfig(d.server)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.Database, cfg.MaxConns = d.name, connections+1
	if d.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, err
	}
	cat, err := catalogue.Load(schemas.Metrics, catalogueFiles())
	if err != nil {
		return nil, err
	}
	if err := service.Migrate(ctx, d.url(), cat); err != nil {
		return nil, err
	}
	d.postgres, err = findPostgres(ctx, d.pool)
	return d, err
}

func (d *database) url() string {
	c := d.pool.Config().ConnConfig
	return fmt.Sprintf("host='%s' port=%d user='%s' password='%s' dbname='%s'", c.Host, c.Port, c.User, c.Password, d.name)
}

// exec runs one statement on the database that was given.
func (d *database) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, d.server)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

func (d *database) number(ctx context.Context, sql string, args ...any) (n int, err error) {
	return n, d.pool.QueryRow(ctx, sql, args...).Scan(&n)
}

// checkCount compares the rows in a family's table with those that must be
// there.
func (d *database) checkCount(ctx context.Context, family string, want int) error {
	n, err := d.number(ctx, "select count(*) from metrics."+family)
	if err == nil && n != want {
		err = fmt.Errorf("%s has %d rows, not %d", family, n, want)
	}
	return err
}

func (d *database) drop() error {
	if d.pool != nil {
		d.pool.Close()
	}
	return d.exec(context.Background(), "drop database if exists "+d.name+" with (force)")
}
