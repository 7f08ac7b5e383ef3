package hostread

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"

	"pganalytics/pkg/batch"
)

// cpuReader remembers the reading before.
type cpuReader struct {
	before *cpu.TimesStat
}

// read gives nothing at first: a share needs two readings.
func (r *cpuReader) read(ctx context.Context) ([][]byte, error) {
	all, err := cpu.TimesWithContext(ctx, false)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errNothing
	}
	count, err := cpu.CountsWithContext(ctx, true)
	if err != nil {
		return nil, err
	}
	before := r.before
	r.before = &all[0]
	if before == nil {
		return nil, nil
	}
	shares, ok := shares(before, &all[0])
	if !ok {
		return nil, nil // no time has passed that the system counts
	}
	row := batch.AppendInt32(nil, int32(min(count, math.MaxInt32)))
	for _, share := range shares {
		row = batch.AppendFloat64(row, share)
	}
	return [][]byte{row}, nil
}

// shares returns how the time between two readings was spent, in percent, in
// the order of the family's columns. Guests' time is a part of the users'. A
// part that went backwards, as iowait may, counts as none.
func shares(before, after *cpu.TimesStat) ([]float64, bool) {
	parts := func(t *cpu.TimesStat) []float64 {
		return []float64{t.User, t.Nice, t.System, t.Idle, t.Iowait, t.Irq, t.Softirq, t.Steal}
	}
	from, to := parts(before), parts(after)
	sum := 0.0
	for i := range to {
		to[i] = max(to[i]-from[i], 0)
		sum += to[i]
	}
	if sum <= 0 {
		return nil, false
	}
	for i := range to {
		to[i] *= 100 / sum
	}
	return to, true
}

func readMemory(ctx context.Context) ([][]byte, error) {
	m, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return nil, err
	}
	swap, err := mem.SwapMemoryWithContext(ctx)
	if err != nil {
		return nil, err
	}
	return [][]byte{numbers(nil,
		m.Total, m.Available, m.Free, m.Buffers, m.Cached, m.Shared, m.Slab, m.PageTables, m.Dirty,
		m.CommittedAS, m.CommitLimit, m.HugePagesTotal, m.HugePagesFree, swap.Total, swap.Free, swap.Sin, swap.Sout)}, nil
}

func readLoad(ctx context.Context) ([][]byte, error) {
	avg, err := load.AvgWithContext(ctx)
	if err != nil {
		return nil, err
	}
	misc, err := load.MiscWithContext(ctx)
	if err != nil {
		return nil, err
	}
	boot, err := host.BootTimeWithContext(ctx)
	if err != nil {
		return nil, err
	}
	var row []byte
	for _, v := range []float64{avg.Load1, avg.Load5, avg.Load15} {
		row = batch.AppendFloat64(row, v)
	}
	row = numbers(row, uint64(misc.ProcsRunning), uint64(misc.ProcsBlocked), uint64(misc.ProcsCreated), uint64(misc.Ctxt))
	return [][]byte{batch.AppendTime(row, time.Unix(int64(min(boot, math.MaxInt32)), 0))}, nil
}

// readDisks leaves out partitions, whose operations are those of their devices
// once more, and devices that are memory or files.
func readDisks(ctx context.Context) ([][]byte, error) {
	all, err := disk.IOCountersWithContext(ctx)
	if err != nil {
		return nil, err
	}
	var rows [][]byte
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !wholeDevice(name) {
			continue
		}
		d := all[name]
		rows = append(rows, numbers(batch.AppendText(nil, name),
			d.ReadCount, d.MergedReadCount, d.ReadBytes, d.ReadTime,
			d.WriteCount, d.MergedWriteCount, d.WriteBytes, d.WriteTime,
			d.IopsInProgress, d.IoTime, d.WeightedIO))
	}
	return rows, nil
}

func wholeDevice(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	_, err := os.Stat(filepath.Join("/sys/block", strings.ReplaceAll(name, "/", "!")))
	return err == nil
}

// readFilesystems returns what could be read beside the error about the rest.
func readFilesystems(ctx context.Context) ([][]byte, error) {
	mounts, err := disk.PartitionsWithContext(ctx, true)
	if err != nil {
		return nil, err
	}
	onDevices, err := disk.PartitionsWithContext(ctx, false)
	if err != nil {
		return nil, err
	}
	var rows [][]byte
	var errs []error
	last := map[string]disk.PartitionStat{} // of several mounts in one place the last is seen
	for _, m := range mounts {
		last[m.Mountpoint] = m
	}
	for _, mount := range slices.Sorted(maps.Keys(last)) {
		m := last[mount]
		onDevice := slices.ContainsFunc(onDevices, func(d disk.PartitionStat) bool {
			return d.Mountpoint == mount && d.Fstype == m.Fstype
		})
		if !onDevice && mount != "/" {
			continue // asking a network's file system may wait for ever
		}
		u, err := disk.UsageWithContext(ctx, mount)
		if err != nil {
			errs = append(errs, fmt.Errorf("file system %s: %w", mount, err))
			continue
		}
		row := batch.AppendText(batch.AppendText(batch.AppendText(nil, mount), m.Device), m.Fstype)
		row = batch.AppendBool(row, slices.Contains(m.Opts, "ro"))
		rows = append(rows, numbers(row, u.Total, u.Used, u.Free, u.InodesTotal, u.InodesFree))
	}
	return rows, errors.Join(errs...)
}

// numbers appends bigint fields. The system's counters are unsigned; one that
// is beyond what the database can store stays at its limit.
func numbers(dst []byte, values ...uint64) []byte {
	for _, v := range values {
		dst = batch.AppendInt64(dst, int64(min(v, math.MaxInt64)))
	}
	return dst
}
