package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// child is a process that the demo started.
type child struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // once done is closed
}

// childStop is how long a process may take to end by itself.
const childStop = time.Minute

func startChild(dir, program string, args ...string) (*child, error) {
	name := filepath.Base(program) + " " + args[0]
	c := &child{name: name, log: filepath.Join(dir, filepath.Base(program)+".log"), done: make(chan struct{})}
	file, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // the process has its own
	// Stopped by stop, not by a context, which would kill it.
	c.cmd = exec.CommandContext(context.Background(), program, args...)
	c.cmd.Stdout, c.cmd.Stderr = file, file
	// Ctrl-C reaches the whole group of a terminal; the demo stops its
	// processes itself, in order. If the demo is killed they end too.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// watch returns an error if the process ends before ctx does.
func (c *child) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.done:
		return fmt.Errorf("%s ended: %w\n%s", c.name, c.err, c.tail())
	}
}

// stop asks the process to end and waits for it. Stopping twice is the same as
// once.
func (c *child) stop() error {
	select {
	case <-c.done:
		return c.err
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-time.After(childStop):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
	return c.err
}

// tail returns the end of the process's log.
func (c *child) tail() []byte {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-20):], []byte("\n"))
}
