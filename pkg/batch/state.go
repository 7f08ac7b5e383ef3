package batch

import (
	"crypto/sha256"
	"time"

	"github.com/google/uuid"
)

// LedgerRow is what the ledger says of a batch.
type LedgerRow struct {
	CollectorID uuid.UUID
	BatchID     uuid.UUID
	SentAt      time.Time
	StoredAt    time.Time // database's clock
	Sequence    uint64    // on the stream
	Incarnation string    // of the stream
	Digest      [sha256.Size]byte
	Rows        int64
	Discarded   string // why the batch was given up; empty when it is stored
}

// Holding is what the table of a family has of a batch's rows.
type Holding struct {
	Family    string `json:"family"`
	Rows      int64  `json:"rows"`      // in the batch
	Found     int64  `json:"found"`     // rows in the table that equal one of them in every column
	Dimension bool   `json:"dimension"` // then rows are no batch's own, and none are looked for
}
