package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives the file room on the disk for n bytes from off on, without
// making it longer.
func allocate(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
}
