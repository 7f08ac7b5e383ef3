// Package testprograms builds the product's programs for tests that run them
// as processes of their own.
package testprograms

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Run builds all programs into a folder, whose name it puts into dir, runs the
// tests and deletes the folder. It returns the status for os.Exit.
func Run(m *testing.M, dir *string) int {
	folder, err := os.MkdirTemp("", "pganalytics-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(folder) }()
	*dir = folder
	build := exec.Command("go", "build", "-o", folder, "pganalytics/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
