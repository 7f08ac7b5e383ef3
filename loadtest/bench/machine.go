package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

const (
	syncs     = 200
	syncBytes = 4 << 10
)

// printMachine says what the figures that follow were taken on: a load well
// above 0 means that others use the machine too, and that figures which are no
// ratios say little.
func printMachine() error {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	took, err := timeSyncs()
	if err != nil {
		return fmt.Errorf("time a synced write: %w", err)
	}
	fmt.Printf("machine: %d cores, load %s before; a synced write of 4 KiB takes %v (p50), %v (p99)\n",
		runtime.NumCPU(), bytes.Fields(load)[0], brief(median(took)), brief(quantile(took, .99)))
	return nil
}

// timeSyncs writes where the stream will lie.
func timeSyncs() (took []time.Duration, err error) {
	f, err := os.CreateTemp("", "pganalytics-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, syncBytes)
	for range syncs {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
