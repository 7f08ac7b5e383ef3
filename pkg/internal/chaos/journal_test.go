package chaos

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// accepted is one batch whose sender was told that it is taken.
type accepted struct {
	Batch     uuid.UUID     `json:"batch"`
	Collector uuid.UUID     `json:"collector"`
	Digest    string        `json:"digest,omitzero"` // unless a gateway makes the batch
	Rows      []acceptedRow `json:"rows"`            // by their n
	Faulty    bool          `json:"faulty,omitzero"` // made so that nobody can store it
}

type acceptedRow struct {
	Sum uint64    `json:"sum"`
	At  time.Time `json:"at"`
}

func acceptedOf(b *batch.Batch, rows []row) accepted {
	a := accepted{Batch: b.ID, Collector: b.CollectorID, Digest: hex.EncodeToString(b.Digest[:]), Rows: make([]acceptedRow, len(rows))}
	for i := range rows {
		a.Rows[i] = acceptedRow{Sum: rows[i].sum(), At: rows[i].at}
		a.Faulty = a.Faulty || rows[i].shortN || rows[i].zeroEnd
	}
	return a
}

// journal is the senders' memory of what they were told: a file that is synced
// before the next batch is sent.
type journal struct {
	mu   sync.Mutex
	file *os.File
}

func newJournal(t *testing.T) *journal {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = file.Close() })
	return &journal{file: file}
}

func (j *journal) note(a accepted) error {
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return j.file.Sync()
}

// read returns what the file holds.
func (j *journal) read(t *testing.T) []accepted {
	t.Helper()
	file, err := os.Open(j.file.Name())
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	var all []accepted
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var a accepted
		require.NoError(t, json.Unmarshal(lines.Bytes(), &a))
		all = append(all, a)
	}
	require.NoError(t, lines.Err())
	return all
}
