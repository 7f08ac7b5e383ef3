package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
)

const (
	syncs     = 200
	syncBytes = 4 << 10

	// busyLoad is the load per core from which on figures are doubtful.
	busyLoad = 0.5
)

// printMachine says what the figures that follow were taken on, and whether
// others use it too: then rows/s and milliseconds say little, and even ratios of
// wall times lie, for the scheduler gives more to whoever has more processes.
func printMachine() error {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	average, err := strconv.ParseFloat(string(bytes.Fields(load)[0]), 64)
	if err != nil {
		return err
	}
	took, err := timeSyncs()
	if err != nil {
		return fmt.Errorf("time a synced write: %w", err)
	}
	fmt.Printf("machine: %d cores, load %.1f before; a synced write of 4 KiB takes %v (p50), %v (p99)\n",
		runtime.NumCPU(), average, brief(median(took)), brief(quantile(took, .99)))
	if average > busyLoad*float64(runtime.NumCPU()) {
		fmt.Println("others use this machine: of the figures below only CPU times and memory can be relied on")
	}
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
