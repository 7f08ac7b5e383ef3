package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"

	"pganalytics/loadtest/internal/program"
)

// usage is CPU time by who spent it.
type usage struct{ bench, services, postgres time.Duration }

func (u usage) sub(v usage) usage {
	return usage{u.bench - v.bench, u.services - v.services, u.postgres - v.postgres}
}

func (u usage) sum() time.Duration { return u.bench + u.services + u.postgres }

func (u usage) per(n float64) usage {
	share := func(d time.Duration) time.Duration { return time.Duration(float64(d) / n) }
	return usage{share(u.bench), share(u.services), share(u.postgres)}
}

// medianUsage is the median of each part by itself.
func medianUsage(v []usage) usage {
	return usage{
		median(each(v, func(u usage) time.Duration { return u.bench })),
		median(each(v, func(u usage) time.Duration { return u.services })),
		median(each(v, func(u usage) time.Duration { return u.postgres })),
	}
}

// meter reads what this process, the services and PostgreSQL have used so far.
type meter struct {
	services []*program.Process
	postgres int // pid of the server's main process; 0 when it runs elsewhere
}

func (m meter) read() (u usage, err error) {
	if u.bench, err = cpuTime(os.Getpid()); err != nil {
		return u, err
	}
	for _, p := range m.services {
		own, err := cpuTime(p.PID())
		if err != nil {
			return u, err
		}
		u.services += own
	}
	if m.postgres != 0 {
		u.postgres, err = familyTime(m.postgres)
	}
	return u, err
}

// findPostgres finds the server's main process if it runs on this host; else
// it returns 0, and PostgreSQL's CPU time will be 0.
func findPostgres(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	var backend int
	if err := pool.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return 0, err
	}
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", backend))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(title, []byte("postgres")) {
		return 0, nil // it runs elsewhere, and the number is some other process's here
	}
	stat, err := readStat(backend)
	return stat.parent, err
}

// familyTime is the CPU time of a process, of its living children and of those
// it has waited for.
func familyTime(pid int) (time.Duration, error) {
	main, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	own, err := cpuTime(pid)
	if err != nil {
		return 0, err
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	sum := own + main.ended
	for _, e := range entries {
		child, err := strconv.Atoi(filepath.Base(e))
		if err != nil {
			continue
		}
		if st, err := readStat(child); err != nil || st.parent != pid {
			continue // another's, or it has ended meanwhile
		}
		if own, err := cpuTime(child); err == nil {
			sum += own
		}
	}
	return sum, nil
}

// cpuTime is what a living process has used, to the nanosecond: /proc has it in
// hundredths of a second only. The number is that of the process's clock, as
// clock_getcpuclockid(3) makes it on Linux.
func cpuTime(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// stat is what /proc/PID/stat tells. Source: proc_pid_stat(5).
type stat struct {
	parent int
	ended  time.Duration // CPU time of children it has waited for
}

// tick is the unit of /proc's times: Linux shows them in hundredths of a second
// on every architecture.
const tick = 10 * time.Millisecond

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	end := bytes.LastIndexByte(data, ')')     // of the name, which may hold anything
	f := strings.Fields(string(data[end+1:])) // f[0] is field 3, the state
	var n [3]int64
	for i, field := range []int{4, 16, 17} {
		if len(f) <= field-3 {
			return stat{}, fmt.Errorf("stat of process %d: %d fields", pid, len(f))
		}
		if n[i], err = strconv.ParseInt(f[field-3], 10, 64); err != nil {
			return stat{}, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	return stat{parent: int(n[0]), ended: time.Duration(n[1]+n[2]) * tick}, nil
}

// The lines of /proc/PID/status that tell memory.
const (
	residentNow  = "VmRSS:"
	residentPeak = "VmHWM:"
)

// memory returns one such line in bytes.
func memory(pid int, line string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(l, line); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of process %d", line, pid)
}
