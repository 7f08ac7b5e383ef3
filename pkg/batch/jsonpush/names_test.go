package jsonpush

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestNamesAreKnownWhileTheirObjectIsOpen compares with a stack of sets.
func TestNamesAreKnownWhileTheirObjectIsOpen(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type object struct {
			first int
			names map[string]bool
		}
		var n names
		stack := []object{{names: map[string]bool{}}}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			inner := stack[len(stack)-1]
			switch step := rapid.IntRange(0, 9).Draw(t, "step"); {
			case step == 0 && n.len() > inner.first:
				stack = append(stack, object{n.len(), map[string]bool{}})
			case step == 1 && len(stack) > 1:
				n.drop(inner.first)
				stack = stack[:len(stack)-1]
			default:
				name := strconv.Itoa(rapid.IntRange(0, 200).Draw(t, "name"))
				if inner.names[name] {
					continue
				}
				got, unique := n.add([]byte(`"`+name+`"`), inner.first)
				require.True(t, unique, "it is in another object at most")
				require.Equal(t, name, string(got))
				inner.names[name] = true
				require.False(t, known(n, name, inner.first))
			}
		}
	})
}

// known reports whether the innermost object of a copy would take the name.
func known(n names, name string, first int) bool {
	n.slots = append([]uint32(nil), n.slots...)
	_, unique := n.add([]byte(`"`+name+`"`), first)
	return unique
}

// Neither many names nor one name at every depth makes a sender's body dear.
func TestManyNamesAreFoundFast(t *testing.T) {
	t.Parallel()
	var n names
	began := time.Now()
	for i := range 200_000 {
		if _, unique := n.add([]byte(`"`+strconv.Itoa(i)+`"`), 0); !unique {
			t.Fatal(i)
		}
	}
	n.drop(0)
	for i := range maxDepth {
		_, unique := n.add([]byte(`"a"`), i)
		require.True(t, unique)
	}
	require.Less(t, time.Since(began), time.Minute)
}
