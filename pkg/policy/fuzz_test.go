package policy_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/policy"
)

// Whatever text it is: no panic, and what is accepted keeps within the limits.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"preset: minimal\nfamilies: {pg_locks: off, pg_settings: {interval: 5s, max_rows: 10}}\n",
		`{"databases": {"include": ["a*"], "exclude": []}, "servers": {"main": {"preset": "exhaustive"}}}`,
		"a: &a [*a]", "<<: {preset: minimal}", "families: {x: {interval: 99999999h}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := policy.Parse("document", data, nil)
		if err != nil {
			return
		}
		for _, p := range d.Servers {
			within(t, p)
		}
		within(t, d.Policy)
	})
}

func within(t *testing.T, p policy.Policy) {
	for _, s := range p.Families {
		require.False(t, s.Off && s != policy.Setting{Off: true})
		require.True(t, s.Interval == 0 || s.Interval >= policy.MinInterval && s.Interval <= policy.MaxInterval)
		require.True(t, s.MaxRows >= 0 && s.MaxRows <= policy.MaxRows)
	}
}
