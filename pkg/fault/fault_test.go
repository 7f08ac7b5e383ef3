package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

var classes = []fault.Class{
	fault.Internal, fault.Invalid, fault.Unauthenticated, fault.Forbidden, fault.NotFound, fault.MethodNotAllowed,
	fault.Conflict, fault.Precondition, fault.TooLarge, fault.UnsupportedMedia, fault.Unprocessable, fault.Throttled,
	fault.Unavailable, fault.Contended, fault.Behind,
}

func TestNoClassIsAnsweredWith500(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range classes {
		require.NotEqual(t, 500, c.HTTPStatus(), c)
		require.False(t, seen[c.String()], "two classes are called %s", c)
		seen[c.String()] = true
	}
}

func TestOnlyFaultsOfTheInputAreBuried(t *testing.T) {
	for _, c := range classes {
		buried := c.Verb() == fault.Bury
		faulty := c == fault.Invalid || c == fault.Conflict || c == fault.TooLarge
		require.Equal(t, faulty, buried, "class %s", c)
	}
}

func TestClassSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("publish: %w", fault.Wrap(fault.TooLarge, errors.New("secret cause")))
	require.Equal(t, fault.TooLarge, fault.ClassOf(err))
	require.ErrorContains(t, err, "secret cause")
}

func TestUnclassifiedIsInternalAndAnEndedContextUnavailable(t *testing.T) {
	require.Equal(t, fault.Internal, fault.ClassOf(errors.New("x")))
	require.Equal(t, fault.Unavailable, fault.ClassOf(fmt.Errorf("x: %w", context.DeadlineExceeded)))
	require.NoError(t, fault.Wrap(fault.Invalid, nil))
}
