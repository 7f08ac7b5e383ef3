package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// quantile returns the value below which a share q of v lies, by the nearest
// rank.
func quantile[T float64 | time.Duration](v []T, q float64) T {
	v = slices.Sorted(slices.Values(v))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

func median[T float64 | time.Duration](v []T) T {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// spread prints the median of v and, in brackets, least and most.
func spread(format string, v []float64) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", median(v), slices.Min(v), slices.Max(v))
}

// each maps v.
func each[T, R any](v []T, f func(T) R) []R {
	out := make([]R, len(v))
	for i := range v {
		out[i] = f(v[i])
	}
	return out
}

// brief rounds to three digits.
func brief(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// gates gathers the figures that miss their bounds.
type gates struct{ missed []error }

// check holds one figure against what it may be at worst.
func (g *gates) check(ok bool, format string, args ...any) {
	if !ok {
		g.missed = append(g.missed, fmt.Errorf("gate missed: "+format, args...))
	}
}

// verdict is an error if a gate was missed and gates count.
func (g *gates) verdict(o options) error {
	err := errors.Join(g.missed...)
	if err != nil && !o.gate {
		fmt.Println(err)
		return nil
	}
	return err
}
