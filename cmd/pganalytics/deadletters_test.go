package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/replay/repair"
)

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

var (
	aCollector = uuid.MustParse("6a1f7a52-6f0c-4d0b-9b57-0c2f4f6b8d11")
	aBatch     = uuid.MustParse("0190b7a4-4b1c-7c3e-8a7d-0123456789ab")
	aTime      = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	aLetter    = letter{
		ID: "0123456789abcdef", Place: 7, BuriedAt: aTime, CollectorID: aCollector, BatchID: aBatch,
		Digest: strings.Repeat("0123456789abcdef", 4), Reason: "data_error", Detail: "invalid byte sequence for encoding", SQLState: "22021",
		Rows: 3, Bytes: 412, Sequence: 40, Incarnation: "2026-01-01T00:00:00Z", Delivered: 2, StoredAt: aTime.Add(-time.Second),
	}
)

func TestTheTextOfDeadLettersIsGolden(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	unread := letter{ID: "fedcba9876543210", Place: 8, BuriedAt: aTime.Add(time.Hour), Reason: "undecodable", Bytes: 8}
	require.NoError(t, printLetters(&out, []letter{aLetter, unread}, 8))
	out.WriteString("\n")
	text := func(s string) *string { return &s }
	row := func(n, datname string) []*string {
		return []*string{text("2026-01-02T03:04:05Z"), text(aCollector.String()), text(n), text(datname), nil}
	}
	s := shownLetter{
		letter: aLetter, SentAt: aTime, Received: aTime, Epoch: aBatch, Number: 12,
		Faults: []repair.Fault{{Section: -1, Row: -1, Why: "the digest is not that of the content"}, {Section: 0, Row: 1, Column: "datname", Why: "has a NUL at byte 1"}},
		Sections: []shownSection{{
			Family: "pg_stat_database", Server: "db1", ServerID: aCollector, Rows: 3,
			Columns: []string{"time", "server_id", "xact_commit", "datname", "stats_reset"}, Values: [][]*string{row("1", "a"), row("2", `"b\x00"`)},
		}},
	}
	require.NoError(t, s.print(&out))
	out.WriteString("\n")
	require.NoError(t, printResults(&out, []result{
		{aLetter.ID, repair.Stored, ""}, {unread.ID, repair.Undecodable, "unmarshal batch: unexpected EOF"},
	}))
	golden(t, "deadletters.txt", out.Bytes())
}

func TestTheTextOfABatchIsGolden(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	tables := []batch.Holding{{Family: "pg_stat_database", Rows: 3, Found: 3}, {Family: "query_text", Rows: 1, Dimension: true}}
	ledger := shownRow{SentAt: aTime, StoredAt: aTime, Sequence: 40, Digest: aLetter.Digest, Rows: 4}
	discarded := ledger
	discarded.Discarded = "measured nonsense"
	for _, s := range []shownBatch{
		{Messages: []shownMessage{{40, aTime, aLetter.Digest, 4, 412}}, Ledger: []shownRow{ledger}, Tables: tables, Letters: []letter{aLetter}},
		{Ledger: []shownRow{discarded}},
		{},
	} {
		require.NoError(t, s.print(&out))
		out.WriteString("\n")
	}
	require.NoError(t, printRemoved(&out, tables, false))
	require.NoError(t, printRemoved(&out, tables, true))
	golden(t, "batch.txt", out.Bytes())
}

func TestWhatASenderMadeUpDoesNotSteerTheTerminal(t *testing.T) {
	t.Parallel()
	evil := "\x1b[2J\u202e\n"
	value := batch.ValueText(catalogue.Text, []byte(evil))
	var out bytes.Buffer
	s := shownLetter{
		Faults:   []repair.Fault{{Section: 0, Row: 0, Column: evil, Why: "is unknown"}},
		Sections: []shownSection{{Family: evil, Server: evil, Columns: []string{evil}, Rows: 1, Values: [][]*string{{&value}}}},
	}
	require.NoError(t, s.print(&out))
	require.NotContains(t, out.String(), "\x1b")
	require.NotContains(t, out.String(), "\u202e")
}
