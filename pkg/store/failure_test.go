package store

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

func TestSQLStatesHintAtClasses(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]fault.Class{
		"08006": fault.Unavailable, "08P01": fault.Invalid,
		"22003": fault.Invalid, "22021": fault.Invalid, "22P04": fault.Invalid,
		"23502": fault.Invalid, "23514": fault.Invalid, "23505": fault.Internal,
		"25006": fault.Unavailable, "28P01": fault.Unavailable, "3D000": fault.Unavailable,
		"40001": fault.Contended, "40P01": fault.Contended, "55P03": fault.Contended,
		"42P01": fault.Behind, "42703": fault.Behind, "42501": fault.Internal,
		"53100": fault.Unavailable, "53200": fault.Unavailable, "53300": fault.Unavailable,
		"54000": fault.Invalid, "57014": fault.Internal, "57P01": fault.Unavailable, "57P03": fault.Unavailable,
		"58030": fault.Unavailable, "0A000": fault.Internal, "XX000": fault.Internal, "": fault.Internal,
	} {
		err := failure("copy", &pgconn.PgError{Code: state}, connectionAlive)
		require.Equal(t, want, fault.ClassOf(err), state)
		require.Equal(t, state, SQLState(err))
	}
	gone := &pgconn.PgError{Code: "XX000", Routine: "relation_open"}
	require.Equal(t, fault.Contended, fault.ClassOf(failure("copy", gone, connectionAlive)), "a chunk dropped meanwhile")
}

func TestLostConnectionIsUnavailableWhateverItSaid(t *testing.T) {
	t.Parallel()
	for _, err := range []error{io.ErrUnexpectedEOF, &pgconn.PgError{Code: "22P04"}, errors.New("anything")} {
		require.Equal(t, fault.Unavailable, fault.ClassOf(failure("copy", err, connectionLost)))
	}
	require.Equal(t, fault.Unavailable, fault.ClassOf(failure("copy", context.Canceled, connectionAlive)))
	require.Equal(t, fault.Internal, fault.ClassOf(failure("copy", errors.New("anything"), connectionAlive)))
	require.NoError(t, failure("copy", nil, connectionLost))
}

func TestOldTimescaleIsRefused(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"2.19.0", "2.19.3", "2.21-dev", "2.100.1", "3.0.0"} {
		require.NoError(t, checkTimescale(good), good)
	}
	for _, bad := range []string{"2.18.9", "1.99.0", "2.2.0", "", "two", "2"} {
		require.Error(t, checkTimescale(bad), bad)
	}
}
