package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/replay/verify"
)

func aReport() verify.Report {
	at := time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	one, epoch := uuid.UUID{1}, uuid.UUID{2}
	return verify.Report{
		Known: at.Add(-40 * 24 * time.Hour),
		Collectors: []verify.Collector{
			{
				ID: one, Epochs: 1, Newest: verify.Number{Epoch: epoch, Sequence: 20, SentAt: at},
				Batches: verify.Counts{verify.Stored: 12, verify.DeadLettered: 1, verify.InFlight: 2, verify.Replayable: 2, verify.Refused: 1, verify.Lost: 2},
			},
			{ID: uuid.UUID{3}, Unnumbered: 7, Batches: verify.Counts{verify.Stored: 7}, Newest: verify.Number{SentAt: at}},
		},
		Gaps: []verify.Gap{
			{Collector: one, Epoch: epoch, First: 1, Last: 2, Class: verify.Lost, To: at},
			{Collector: one, Epoch: epoch, First: 3, Last: 3, Class: verify.DeadLettered, From: at, To: at},
			{Collector: one, Epoch: epoch, First: 4, Last: 5, Class: verify.Replayable, From: at, To: at.Add(time.Minute)},
			{Collector: one, Epoch: epoch, First: 7, Last: 7, Class: verify.Refused, From: at},
		},
		GapCount: 5,
		Families: []verify.Family{
			{Name: "narrow", From: at, Ranges: 3, LedgerRows: 30, TableRows: 29},
			{Name: "texts", LeftOut: "dimension: each content is stored once"},
			{Name: "wide"},
		},
		Mismatches: []verify.Mismatch{
			{Family: "narrow", ServerID: uuid.UUID{4}, Server: "db1", CollectorID: one, From: at, To: at.Add(time.Hour), LedgerRows: 10, TableRows: 9},
			{Family: "narrow", ServerID: uuid.UUID{5}, From: at, To: at.Add(2 * time.Hour), TableRows: 1},
		},
		MismatchCount: 3, AckedInFlight: 1, Unknown: 1, ReplayFrom: 4, ReplayTo: 5,
	}
}

func TestTextsOfVerifyAreGolden(t *testing.T) { // not parallel: the time zone
	var out bytes.Buffer
	r := aReport()
	require.NoError(t, printReport(&out, &r))
	out.WriteString("\n" + findings(&r).Error() + "\n\n")
	require.NoError(t, printReport(&out, &verify.Report{}))
	out.WriteString("\n")
	require.NoError(t, json.NewEncoder(&out).Encode(r))
	file := filepath.Join("testdata", "verify.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestExitCodesOfVerifyTellWhetherSomebodyMustAct(t *testing.T) {
	t.Parallel()
	for class, bad := range map[verify.Class]bool{
		verify.Stored: false, verify.InFlight: false, verify.Refused: false, verify.Discarded: false,
		verify.DeadLettered: true, verify.Replayable: true, verify.Lost: true,
	} {
		r := verify.Report{Collectors: []verify.Collector{{}}}
		r.Collectors[0].Batches[class] = 1
		err := findings(&r)
		require.Equal(t, bad, err != nil, class)
		require.True(t, err == nil || exitCode(err) == 2)
	}
	require.Error(t, findings(&verify.Report{MismatchCount: 1}))
	require.Error(t, findings(&verify.Report{AckedInFlight: 1}))
	require.Error(t, findings(&verify.Report{Unknown: 1}), "what cannot be read is not proven")
	require.NoError(t, findings(&verify.Report{Unreadable: 1}), "it is a letter")
}

func TestVerifyWithoutAStreamSaysHowToReachIt(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
	var out bytes.Buffer
	err := run(t.Context(), []string{"verify", "--data-dir", t.TempDir()}, &out, &out)
	require.ErrorContains(t, err, "--nats-url")
	require.Equal(t, 1, exitCode(err))
	require.ErrorContains(t, run(t.Context(), []string{"verify", "--list=-1"}, &out, &out), "--list")
}
