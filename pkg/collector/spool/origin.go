package spool

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A spool that was copied, or went back to an older state with its disk, would
// give numbers a second time, to other batches. So an epoch is bound to where
// it began: to the system's boot and to the journal's own file. On another
// machine, after a reboot (and so after a disk was put back under it), and from
// a copy a new epoch begins. What goes back under a running system, as a volume
// that is rolled back in place, cannot be told from here.

// bootID returns what is different after each boot; empty where the system does
// not tell.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// origin returns what binds an epoch whose journal is the file of that name.
func origin(boot, dir, name string) string {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
		return "" // there is none, so there is no epoch
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(boot), st.Ino))
	return hex.EncodeToString(sum[:8])
}

// maxStandstill is what the wall clock may gain on the process's own clock
// between two batches. More means that the machine was stopped meanwhile, and
// may be one that was put back to a saved state together with its memory. The
// clock may also have been set; one epoch more does no harm.
const maxStandstill = time.Minute

// watch compares the two clocks.
type watch struct {
	wall time.Time     // without monotonic reading
	run  time.Duration // of the process's own clock
}

var processStart = time.Now()

func look() watch { return watch{wall: time.Now().Round(0), run: time.Since(processStart)} }

// stoodStill reports whether the machine seems to have been stopped since the
// last look.
func (w *watch) stoodStill() bool {
	before := *w
	*w = look()
	return w.wall.Sub(before.wall)-(w.run-before.run) > maxStandstill
}
