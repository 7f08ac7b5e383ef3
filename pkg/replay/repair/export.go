package repair

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// exported is what stands beside a letter's bytes.
type exported struct {
	ID          string    `json:"id"`
	CollectorID uuid.UUID `json:"collector_id"`
	BatchID     uuid.UUID `json:"batch_id"`
	Digest      string    `json:"digest"` // of the batch
	Reason      string    `json:"reason"`
	Detail      string    `json:"detail"`
	SQLState    string    `json:"sqlstate"`
	Rows        int       `json:"rows"`
	Sequence    uint64    `json:"stream_sequence"`
	Incarnation string    `json:"stream_incarnation"`
	StoredAt    time.Time `json:"stored_at"`
	BuriedAt    time.Time `json:"buried_at"`
	Payload     string    `json:"payload"` // the file with the bytes
	Size        int       `json:"payload_bytes"`
	SHA256      string    `json:"payload_sha256"`
}

// Export writes each letter into two files of dir, which is made if it is
// missing: its bytes, and what is known of it as JSON with the digest of the
// bytes. When it returns, both are on disk; the JSON is written last, so what
// it names is whole. Letters that are there already are written again.
func (b *Bench) Export(ctx context.Context, heads []batch.FiledLetter, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	for _, head := range heads {
		l, err := b.get(ctx, head)
		if err == nil {
			err = export(l, dir)
		}
		if err != nil {
			return fmt.Errorf("export letter %s: %w", head.ID, err)
		}
	}
	return syncDir(dir)
}

func export(l batch.FiledLetter, dir string) error {
	sum := sha256.Sum256(l.Payload)
	e := exported{
		ID: l.ID, CollectorID: l.CollectorID, BatchID: l.BatchID, Digest: hex.EncodeToString(l.Digest[:]),
		Reason: l.Reason, Detail: l.Detail, SQLState: l.SQLState, Rows: l.Rows,
		Sequence: l.Position.Sequence, Incarnation: l.Position.Incarnation, StoredAt: l.Position.StoredAt, BuriedAt: l.BuriedAt,
		Payload: address(l) + ".batch", Size: len(l.Payload), SHA256: hex.EncodeToString(sum[:]),
	}
	head, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, e.Payload), l.Payload); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, address(l)+".json"), append(head, '\n'))
}

// writeFile makes the file or replaces it, whole or not at all.
func writeFile(name string, data []byte) error {
	draft := name + ".draft"
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(draft, name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
