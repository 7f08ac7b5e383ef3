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
	"syscall"
	"time"
)

// usage is CPU time by process.
type usage struct{ sender, serve, postgres time.Duration }

func (u usage) sub(v usage) usage {
	return usage{u.sender - v.sender, u.serve - v.serve, u.postgres - v.postgres}
}

func (u usage) per(rows float64) usage {
	each := func(d time.Duration) time.Duration { return time.Duration(float64(d) / rows) }
	return usage{each(u.sender), each(u.serve), each(u.postgres)}
}

func (s *system) usage() (usage, error) {
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return usage{}, err
	}
	serve, err := readStat(s.serve.Process.Pid)
	if err != nil {
		return usage{}, err
	}
	u := usage{sender: time.Duration(self.Utime.Nano() + self.Stime.Nano()), serve: serve.own}
	if s.postgres != 0 {
		u.postgres, err = familyTime(s.postgres)
	}
	return u, err
}

// findPostgres finds the server's main process if it runs on this host; its
// CPU time is 0 otherwise.
func (s *system) findPostgres(ctx context.Context) error {
	var backend int
	if err := s.pool.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return err
	}
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", backend))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(title, []byte("postgres")) {
		return nil // it runs elsewhere, and the number is some other process's here
	}
	stat, err := readStat(backend)
	s.postgres = stat.parent
	return err
}

// familyTime is the CPU time of a process, of its living children and of those
// it has waited for.
func familyTime(pid int) (time.Duration, error) {
	main, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	sum := main.own + main.ended
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		child, err := strconv.Atoi(filepath.Base(e))
		if err != nil {
			continue
		}
		if st, err := readStat(child); err == nil && st.parent == pid { // it may have ended meanwhile
			sum += st.own
		}
	}
	return sum, nil
}

// stat is what /proc/PID/stat tells. Source: proc_pid_stat(5).
type stat struct {
	parent     int
	own, ended time.Duration // CPU time of the process and of children it has waited for
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
	var n [5]int64
	for i, field := range []int{4, 14, 15, 16, 17} {
		if len(f) <= field-3 {
			return stat{}, fmt.Errorf("stat of process %d: %d fields", pid, len(f))
		}
		if n[i], err = strconv.ParseInt(f[field-3], 10, 64); err != nil {
			return stat{}, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	return stat{
		parent: int(n[0]),
		own:    time.Duration(n[1]+n[2]) * tick, ended: time.Duration(n[3]+n[4]) * tick,
	}, nil
}

// peakMemory is the largest resident size of serve so far, in bytes.
func (s *system) peakMemory() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.serve.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM in the status of serve")
}
