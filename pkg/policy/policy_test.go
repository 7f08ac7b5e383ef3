package policy_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/policy"
)

func parse(t *testing.T, text string) policy.Document {
	t.Helper()
	d, err := policy.Parse("document", []byte(text), nil)
	require.NoError(t, err)
	return d
}

func builtIn(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	cat, err := catalogue.Default()
	require.NoError(t, err)
	return cat
}

func TestTheStrongerLayerDecidesFamilyByFamily(t *testing.T) {
	t.Parallel()
	pulled := parse(t, `
families:
  pg_locks: off
  pg_settings: {interval: 2h}
  pg_stat_wal: on
databases: {exclude: []}
servers:
  main: {families: {pg_stat_wal: off}, databases: {include: [shop]}}
`)
	local := parse(t, `
preset: minimal
families:
  pg_locks: {interval: 30s}
  pg_settings: {interval: 1h, max_rows: 7}
  pg_stat_wal: {interval: 9s}
  pg_stat_bgwriter: off
databases: {include: [a, b], exclude: [c]}
`)
	require.Equal(t, policy.Policy{
		Preset: catalogue.Minimal,
		Families: map[string]policy.Setting{
			"pg_locks":         {Off: true},
			"pg_settings":      {Interval: 2 * time.Hour, MaxRows: 7},
			"pg_stat_wal":      {}, // on: as the catalogue says
			"pg_stat_bgwriter": {Off: true},
		},
		Databases: policy.Databases{Include: []string{"a", "b"}, Exclude: []string{}},
	}, policy.Merge(pulled.Policy, local.Policy))

	main := policy.Merge(pulled.Servers["main"], pulled.Policy, local.Policy)
	require.Equal(t, policy.Setting{Off: true}, main.Families["pg_stat_wal"])
	require.Equal(t, []string{"shop"}, main.Databases.Include)
	require.Equal(t, policy.Setting{Interval: 9 * time.Second}, local.Families["pg_stat_wal"], "layers stay as they are")
}

func TestASettingTurnsOnWhatALayerBelowTurnsOff(t *testing.T) {
	t.Parallel()
	merged := policy.Merge(parse(t, "families: {pg_locks: {max_rows: 5}}").Policy, parse(t, "families: {pg_locks: off}").Policy)
	require.Equal(t, policy.Setting{MaxRows: 5}, merged.Families["pg_locks"])
}

func TestAPresetChoosesWhatIsNotNamed(t *testing.T) {
	t.Parallel()
	cat := builtIn(t)
	for _, preset := range []catalogue.Preset{0, catalogue.Minimal, catalogue.Standard, catalogue.Exhaustive} {
		readings := policy.Policy{Preset: preset}.Resolve(cat)
		if preset == 0 {
			preset = catalogue.Standard
		}
		for _, f := range cat.Families() {
			r, on := readings[f.Name]
			require.Equal(t, f.Preset <= preset, on, f.Name)
			if on {
				require.Equal(t, policy.Reading{Interval: f.Interval, MaxRows: policy.DefaultMaxRows}, r)
			}
		}
	}
}

func TestANamedFamilyDoesNotHeedThePreset(t *testing.T) {
	t.Parallel()
	cat := builtIn(t)
	none := "preset: minimal\nfamilies:\n"
	for _, f := range cat.Families() {
		none += "  " + f.Name + ": off\n"
	}
	require.Empty(t, parse(t, none).Resolve(cat))

	for _, f := range cat.Families() {
		d := parse(t, "preset: minimal\nfamilies: {"+f.Name+": {interval: 3s, max_rows: 9}}")
		require.Equal(t, policy.Reading{Interval: 3 * time.Second, MaxRows: 9}, d.Resolve(cat)[f.Name])
	}
}

func TestANewerFamilyIsPassedOverAndNamed(t *testing.T) {
	t.Parallel()
	d := parse(t, `
families: {pg_of_tomorrow: on, pg_locks: off}
servers: {main: {families: {pg_of_next_year: {interval: 5s}}}, other: {families: {pg_of_tomorrow: off}}}
`)
	cat := builtIn(t)
	require.Equal(t, []string{"pg_of_next_year", "pg_of_tomorrow"}, d.Unknown(cat))
	readings := policy.Merge(d.Servers["main"], d.Policy).Resolve(cat)
	require.NotContains(t, readings, "pg_of_tomorrow")
	require.NotContains(t, readings, "pg_locks", "what the rest of the document says is heeded")
}
