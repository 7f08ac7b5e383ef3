package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// cluster is a database server of the drill's own. It is deleted when the drill
// ends, however it ends.
type cluster struct {
	script, home, url string
	cmd               *exec.Cmd
	hold              io.Closer // the server lives for as long as it is open
}

func startCluster(script string) (*cluster, error) {
	c := &cluster{script: script}
	c.cmd = exec.CommandContext(context.Background(), script, "run", "--", "sh", "-c", `printf '%s\n' "$TSDB_HOME" "$DATABASE_URL"; exec cat`)
	c.cmd.Stderr = os.Stderr
	hold, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c.hold = hold
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(stdout)
	for _, to := range []*string{&c.home, &c.url} {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start a database server: %w", err), c.end())
		}
		*to = strings.TrimSpace(line)
	}
	return c, nil
}

func (c *cluster) end() error { return errors.Join(c.hold.Close(), c.cmd.Wait()) }

func (c *cluster) data() string   { return filepath.Join(c.home, "data") }
func (c *cluster) backup() string { return filepath.Join(c.home, "backup") }

func (c *cluster) start() error           { return c.control("start") }
func (c *cluster) stop(mode string) error { return c.control("stop", mode) }
func (c *cluster) control(args ...string) error {
	cmd := exec.CommandContext(context.Background(), c.script, args...)
	cmd.Env = append(os.Environ(), "TSDB_HOME="+c.home, "TSDB_PORT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s the database server: %w\n%s", args[0], err, out)
	}
	return nil
}

// copyTo takes a physical backup: the files of the stopped server.
func (c *cluster) takeBackup() error {
	if err := c.stop("fast"); err != nil {
		return err
	}
	if err := copyFiles(c.data(), c.backup()); err != nil {
		return err
	}
	return c.start()
}

// destroy crashes the server and deletes its files.
func (c *cluster) destroy() error {
	return errors.Join(c.stop("immediate"), os.RemoveAll(c.data()))
}

func (c *cluster) restore() error {
	if err := copyFiles(c.backup(), c.data()); err != nil {
		return err
	}
	return c.start()
}

// copyFiles keeps the owner: the server may run as somebody else.
func copyFiles(from, to string) error {
	if out, err := exec.CommandContext(context.Background(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}

// exec runs statements on a session of its own.
func (c *cluster) exec(ctx context.Context, statements ...string) error {
	return c.with(ctx, func(conn *pgx.Conn) error {
		for _, sql := range statements {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
}

func (c *cluster) with(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, c.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return do(conn)
}

// stored is the number of batches in the ledger; an error while the server is
// away.
func (c *cluster) stored(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = c.with(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "select count(*) from ingest.batch").Scan(&n)
	})
	return n, err
}
