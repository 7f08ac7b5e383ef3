package logread

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAPipeAmongTheLogFilesHoldsNothingUp(t *testing.T) {
	t.Parallel()
	s := follow(t, "*.csv", "a.csv", "")
	require.NoError(t, syscall.Mkfifo(filepath.Join(s.dir, "b.csv"), 0o600))
	s.write("a.csv", csvLine("ERROR", "42P01", "x"))
	type answer struct {
		count Count
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		count, err := s.Read()
		answers <- answer{count, err}
	}()
	select {
	case a := <-answers:
		require.ErrorContains(t, a.err, "b.csv is no regular file")
		require.Equal(t, map[Key]int64{{"ERROR", "42P01"}: 1}, a.count.Messages)
	case <-time.After(20 * time.Second):
		require.Fail(t, "the pipe is waited for")
	}
}

func TestMadeUpSQLStatesAreCountedByTheirClass(t *testing.T) {
	t.Parallel()
	s := follow(t, "*.csv", "a.csv", "")
	var lines strings.Builder
	for i := range 3 * maxKeys {
		lines.WriteString(csvLine("NOTICE", fmt.Sprintf("U%04d", i), "x"))
	}
	s.write("a.csv", lines.String())
	count, err := s.Read()
	require.NoError(t, err)
	require.Less(t, len(count.Messages), maxKeys+20)
	messages := int64(0)
	for _, n := range count.Messages {
		messages += n
	}
	require.EqualValues(t, 3*maxKeys, messages)
	require.EqualValues(t, 1000, count.Messages[Key{"NOTICE", "U2000"}], "all of class U2")
}
