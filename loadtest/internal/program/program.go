// Package program runs the programs of the system beside the one that uses it.
package program

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pganalytics/pkg/service"
)

// Process is a program that runs.
type Process struct {
	cmd       *exec.Cmd
	log       string // file
	endpoints string // file
	Admin     string // address
}

// Start runs a program that lies beside this one, with its files in dir under
// the name given.
func Start(dir, name, databaseURL, program string, args ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	admin, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	p := &Process{
		log: filepath.Join(dir, name+".log"), endpoints: filepath.Join(dir, name+".endpoints"),
		Admin: "http://" + admin,
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the program has its own
	p.cmd = exec.CommandContext(context.Background(), filepath.Join(filepath.Dir(self), program),
		append(args, "--log-level", "warn", "--admin-listen", admin, "--endpoints-file", p.endpoints)...)
	p.cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+databaseURL)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// It must outlive neither this process nor be ended by the terminal's Ctrl-C
	// before what it serves.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make builds it): %w", program, err)
	}
	return p, nil
}

// FreeAddress returns an address on the loopback that nobody listens on.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// PID is its number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ready waits until the process tells where it is found.
func (p *Process) Ready(ctx context.Context) (e service.Endpoints, err error) {
	err = p.Await(ctx, "ready", func() error {
		data, err := os.ReadFile(p.endpoints)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &e)
	})
	return e, err
}

// Await tries f until it succeeds, for a minute.
func (p *Process) Await(ctx context.Context, what string, f func() error) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%s is not %s: %w\n%s", filepath.Base(p.cmd.Path), what, err, p.Tail())
		}
	}
}

// Tail is the end of what the process has logged.
func (p *Process) Tail() []byte {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(data[max(0, len(data)-2000):])
}

// Metric returns the sum of a metric's series.
func (p *Process) Metric(ctx context.Context, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	found := false
	for line := range strings.Lines(string(text)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(series, "{"); !ok || base != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", filepath.Base(p.cmd.Path), name)
	}
	return sum, nil
}

// Stop ends the processes in good order, all at once.
func Stop(processes ...*Process) error {
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, p := range processes {
		if err := p.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n%s", filepath.Base(p.cmd.Path), err, p.Tail()))
		}
	}
	return errors.Join(errs...)
}
