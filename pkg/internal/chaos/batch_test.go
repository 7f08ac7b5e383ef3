package chaos

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/schemas"
)

// Every batch has rows in both families, and in each rows of two days, so in
// four chunks: what is not one transaction shows.
var families = [2]string{"chaos_left", "chaos_right"}

const family = `
name: NAME
description: Rows of the tests.
scope: instance
interval: 60s
retention: 2d
chunk: 1d
key: [batch, n]
columns:
  - {name: batch, type: uuid, kind: label, help: Which batch.}
  - {name: n, type: integer, kind: label, help: Which row of it.}
  - {name: body, type: text, kind: info, help: What only this row says.}
  - {name: extra, type: bigint, kind: gauge, help: A column that came with a later version.}
queries:
  - {min_version: 13, sql: "select 1"}
`

var columns = []batch.Column{
	{Name: "batch", Type: catalogue.UUID}, {Name: "n", Type: catalogue.Integer},
	{Name: "body", Type: catalogue.Text}, {Name: "extra", Type: catalogue.BigInt},
}

// writeCatalogue writes the families' files into a directory of its own;
// withExtra is the newer version.
func writeCatalogue(t *testing.T, withExtra bool) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, file := range catalogueFiles(withExtra) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), file.Data, 0o600))
	}
	return dir
}

func loadCatalogue(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	cat, err := catalogue.Load(schemas.Metrics, catalogueFiles(true))
	require.NoError(t, err)
	return cat
}

func catalogueFiles(withExtra bool) fstest.MapFS {
	files := fstest.MapFS{}
	for _, name := range families {
		text := strings.ReplaceAll(family, "NAME", name)
		if !withExtra {
			before, after, _ := strings.Cut(text, "  - {name: extra")
			_, after, _ = strings.Cut(after, "\n")
			text = before + after
		}
		files[name+".yaml"] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

// row is one row as its sender made it.
type row struct {
	family          int
	at              time.Time
	server          uuid.UUID
	batch           uuid.UUID
	n               int32
	body            string
	extra           int64
	shortN, zeroEnd bool // what COPY refuses
}

// sum tells the row from any other, and from the same with anything changed.
func (r *row) sum() uint64 {
	h := fnv.New64a()
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(r.family))
	b = binary.BigEndian.AppendUint64(b, uint64(r.at.UnixMicro()))
	b = append(append(b, r.server[:]...), r.batch[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(r.n))
	b = binary.BigEndian.AppendUint64(b, uint64(r.extra))
	_, _ = h.Write(append(b, r.body...)) // never fails
	return h.Sum64()
}

func (r *row) appendTo(dst []byte) []byte {
	dst = batch.AppendTuple(dst, batch.LeadFields+len(columns), r.at, r.server)
	dst = batch.AppendUUID(dst, r.batch)
	if r.shortN {
		dst = batch.AppendInt16(dst, int16(r.n)) // where an integer belongs: 08P01
	} else {
		dst = batch.AppendInt32(dst, r.n)
	}
	body := r.body
	if r.zeroEnd {
		body += "\x00" // which no text may hold: 22021
	}
	dst = batch.AppendText(dst, body)
	return batch.AppendInt64(dst, r.extra)
}

// newBatch returns a sealed batch and its rows. Half of them are a day old, or
// as old as their sender wants them.
func newBatch(collector uuid.UUID, n int, change func(*row)) (*batch.Batch, []row) {
	id := uuid.Must(uuid.NewV7())
	sec, nsec := id.Time().UnixTime()
	at := time.Unix(sec, nsec).UTC().Truncate(time.Millisecond)
	server := batch.ServerID(collector, "db1")
	rows := make([]row, n)
	b := &batch.Batch{CollectorID: collector, ID: id, SentAt: at, ReceivedAt: time.Now().UTC(), Sections: make([]batch.Section, len(families))}
	for i := range families {
		b.Sections[i] = batch.Section{Family: families[i], Server: "db1", ServerID: server, Columns: columns, MinTime: at, MaxTime: at}
	}
	for i := range rows {
		r := &rows[i]
		body := sha256.Sum256(binary.BigEndian.AppendUint32(id[:], uint32(i)))
		*r = row{family: i % len(families), at: at, server: server, batch: id, n: int32(i), body: hex.EncodeToString(body[:]), extra: int64(i) * 7}
		if i >= n/2 {
			r.at = at.Add(-24 * time.Hour)
		}
		if change != nil {
			change(r)
		}
		s := &b.Sections[r.family]
		s.Rows++
		s.Tuples = r.appendTo(s.Tuples)
		if r.at.Before(s.MinTime) {
			s.MinTime = r.at
		}
	}
	b.Seal()
	return b, rows
}
