// Package chaos breaks the real parts around a stream of batches and proves
// that every batch which its sender was told is taken is stored exactly once,
// or lies in the dead letters if it could not be stored by anyone.
//
// Senders note what they were told in a journal. When the fault is over and
// the stream is empty of work, the journal is held against the ledger, every
// single row of the tables, and the dead letters.
package chaos

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"pganalytics/pkg/internal/testprograms"
)

// programs is where TestMain builds them.
var programs string

func TestMain(m *testing.M) {
	if role() {
		return
	}
	code := testprograms.Run(m, &programs)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// full asks for the scenarios that take long.
const full = "CHAOS"

// slow leaves a scenario to make chaos.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv(full) != "full" {
		t.Skip("takes long: make chaos")
	}
}
