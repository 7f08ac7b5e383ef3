package verify

import (
	"math"
	"slices"
	"sort"
	"time"
)

// span is numbers that follow one another, both ends included, with the times
// at which the batches at its ends were sent; zero where nobody knows.
type span struct {
	first, last uint64
	begin, end  time.Time
}

// spans is a set of numbers above zero as the fewest spans that hold it, in
// their order. Its size goes with the number of holes, not of numbers.
type spans []span

// from returns the index of the first span that ends at n or later.
func (s *spans) from(n uint64) int {
	return sort.Search(len(*s), func(i int) bool { return (*s)[i].last >= n })
}

func (s *spans) has(n uint64) bool {
	i := s.from(n)
	return i < len(*s) && (*s)[i].first <= n
}

// add puts a number in; one that is there already changes nothing.
func (s *spans) add(n uint64, at time.Time) {
	i := s.from(n - 1) // the first that n touches, or that lies behind it
	if i == len(*s) || (*s)[i].first > n && (*s)[i].first-1 > n {
		*s = slices.Insert(*s, i, span{n, n, at, at})
		return
	}
	switch p := &(*s)[i]; {
	case p.first > n:
		p.first, p.begin = n, at
	case p.last < n:
		p.last, p.end = n, at
		if next := i + 1; next < len(*s) && (*s)[next].first-1 == n {
			p.last, p.end = (*s)[next].last, (*s)[next].end
			*s = slices.Delete(*s, next, next+1)
		}
	}
}

// numbering is what is known of the numbers of one epoch.
type numbering [Lost]spans // by class; a number of none of them is lost

// each calls f for the numbers from first to last, cut into the longest parts
// of one class each. A number that has several classes is of the first of them.
// Where a span is cut the times at the cut are not known.
func (n *numbering) each(first, last uint64, f func(Class, span)) {
	for first <= last {
		class, part := n.part(first, last)
		f(class, part)
		if part.last == math.MaxUint64 {
			return
		}
		first = part.last + 1
	}
}

// part returns the part that begins at first.
func (n *numbering) part(first, last uint64) (Class, span) {
	for class := range n {
		i := n[class].from(first)
		if i == len(n[class]) {
			continue
		}
		p := n[class][i]
		if p.first > first {
			last = min(last, p.first-1) // where a better class begins
			continue
		}
		if p.first < first {
			p.first, p.begin = first, time.Time{}
		}
		if p.last > last {
			p.last, p.end = last, time.Time{}
		}
		return Class(class), p
	}
	return Lost, span{first: first, last: last}
}
