package main

import (
	"fmt"
	"time"
)

// moment is a flag that says when: a time, or how long ago.
type moment struct{ time.Time }

// UnmarshalText reads RFC 3339, date and time in local time, or a duration.
func (m *moment) UnmarshalText(text []byte) error {
	s := string(text)
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		m.Time = time.Now().Add(-ago)
		return nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		m.Time = t
		return nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			m.Time = t
			return nil
		}
	}
	return fmt.Errorf(`%q is neither a time, as 2026-01-31T15:04:05Z or "2026-01-31 15:04", nor how long ago, as 6h`, s)
}
