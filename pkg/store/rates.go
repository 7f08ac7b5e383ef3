package store

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"pganalytics/pkg/catalogue"
)

// What the rates of a family need to know of its columns.
const (
	// resetColumn tells when the row's counters last began at zero.
	resetColumn = "stats_reset"

	// sendsAll is how long a row of a family with changed_by may go unsent.
	sendsAll = time.Hour

	rateType = "double precision"
)

// rates returns the statements that make what reads a family's counters as
// rates, or bring it to the catalogue's columns; false means that none are
// needed.
//
// There are two ways in, of the same name and columns. A view has to look up
// each row's predecessor by itself, for a window function would keep
// predicates on time from the table: it would read all that is kept. The
// function takes the range of time as its arguments and so can use a window.
// PostgreSQL inlines it, so that predicates on server and key reach the table
// too. Measured over 6 hours of one server with 10 keys: the function 16 ms,
// the view 250 ms, a view with a window and 14 days kept 700 ms. Looking up is
// quadratic in the keys: with 1,000 of them an hour takes the view 12 s and the
// function 0.5 s.
//
// A view is replaced in place and its columns keep their order, so that other
// views may build on it. One that has columns which this catalogue lacks is
// that of a newer version and stays.
func rates(f *catalogue.Family, view relation, exists bool) (change, bool) {
	name := quote("metrics", f.Name+catalogue.RatesSuffix)
	var sql strings.Builder
	order := ratesColumns(f)
	if exists {
		for _, c := range view.order {
			if !slices.Contains(order, c) {
				return change{}, false
			}
		}
		if ofOtherType(f, view) {
			fmt.Fprintf(&sql, "drop function if exists %[1]s(timestamptz, timestamptz);\ndrop view %[1]s;\n", name)
		} else {
			order = slices.Concat(view.order, without(order, view.order))
		}
	}
	b := ratesBuilder{f, order, staleAfter(f)}
	fmt.Fprintf(&sql, "create or replace view %s with (security_invoker = true) as\n%s;\n", name, b.byLookup())
	fmt.Fprintf(&sql, `create or replace function %[1]s(since timestamptz, until timestamptz default 'infinity')
returns setof %[1]s language sql stable parallel safe as $rates$
%[2]s
$rates$;
`, name, b.byWindow())
	b.comments(&sql, name)
	definition := fmt.Sprintf("[%x]", sha256.Sum256([]byte(sql.String())))[:9] + "]"
	if exists && strings.HasSuffix(view.comment, definition) {
		return change{}, false
	}
	fmt.Fprintf(&sql, "comment on view %s is %s;\n", name, literal(b.help()+" "+definition))
	return change{f.Name + catalogue.RatesSuffix, sql.String()}, true
}

// ratesColumns returns the columns of a family's rates, as a new view has them.
func ratesColumns(f *catalogue.Family) []string {
	columns := slices.Concat([]string{"time", "server_id"}, f.Key, []string{catalogue.SecondsColumn})
	for _, c := range f.Columns {
		if !slices.Contains(f.Key, c.Name) {
			columns = append(columns, c.Name)
		}
	}
	return columns
}

func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

// ofOtherType tells a view that cannot be replaced in place: a column's kind
// has changed between counter and another.
func ofOtherType(f *catalogue.Family, view relation) bool {
	return slices.ContainsFunc(f.Columns, func(c catalogue.Column) bool {
		typ, exists := view.columns[c.Name]
		return exists && (c.Kind == catalogue.Counter && typ != rateType || c.Kind != catalogue.Counter && typ != c.Type.String())
	})
}

// staleAfter is the longest interval that a rate is taken over. Over a longer
// one nobody watched, and a rate would claim to know what happened in it.
func staleAfter(f *catalogue.Family) time.Duration {
	if len(f.ChangedBy) > 0 {
		return sendsAll + 3*f.Interval
	}
	return 3 * f.Interval
}

// ratesBuilder writes the two queries. Both end in the same expressions over a
// row c and what they call the last values, those of the row before.
type ratesBuilder struct {
	f     *catalogue.Family
	order []string
	stale time.Duration
}

// lookback lists the columns of the row before that are needed.
func (b ratesBuilder) lookback() []string {
	columns := append([]string{"time"}, b.f.Counters()...)
	if b.hasReset() {
		columns = append(columns, resetColumn)
	}
	return columns
}

func (b ratesBuilder) hasReset() bool {
	i, ok := b.f.Column(resetColumn)
	return ok && b.f.Columns[i].Type == catalogue.TimestampTZ
}

// last returns the name of the last value of a column. Numbers keep it from
// being as long as PostgreSQL would cut, the space from being a column's.
func (b ratesBuilder) last(column string) string {
	return quote(fmt.Sprintf("last %d", slices.Index(b.order, column)))
}

// byLookup is the query of the view.
func (b ratesBuilder) byLookup() string {
	var last []string
	for _, c := range b.lookback() {
		last = append(last, "p."+quote(c)+" as "+b.last(c))
	}
	same := ""
	for _, k := range slices.Concat([]string{"server_id"}, b.f.Key) {
		same += "p." + quote(k) + " = c." + quote(k) + " and "
	}
	return fmt.Sprintf(`select %[1]s
from %[2]s c
left join lateral (
    select %[3]s
    from %[2]s p
    where %[4]sp.time < c.time and p.time >= c.time - %[5]s
    order by p.time desc limit 1) p on true
%[6]s`,
		b.selected(), quote("metrics", b.f.Name), strings.Join(last, ", "), same, interval(b.stale), b.since())
}

// byWindow is the query of the function. Its parameters go by number: a name
// would be hidden by a column's.
func (b ratesBuilder) byWindow() string {
	last := ""
	for _, c := range b.lookback() {
		last += ", lag(f." + quote(c) + ") over same as " + b.last(c)
	}
	same := "f.server_id"
	for _, k := range b.f.Key {
		same += ", f." + quote(k)
	}
	return fmt.Sprintf(`select %[1]s
from (
    select f.*%[3]s
    from %[2]s f
    where f.time >= $1 - %[5]s and f.time < $2
    window same as (partition by %[4]s order by f.time)) c
%[6]s
where c.time >= $1`,
		b.selected(), quote("metrics", b.f.Name), last, same, interval(b.stale), b.since())
}

// since joins what the rates of a row are taken over: the seconds since the row
// before or, if the counters began at zero after it, since then.
func (b ratesBuilder) since() string {
	elapsed := fmt.Sprintf(`case when c.time - %[1]s <= %[2]s then nullif(extract(epoch from c.time - %[1]s), 0)::%[3]s end`,
		b.last("time"), interval(b.stale), rateType)
	if !b.hasReset() {
		return "cross join lateral (select " + elapsed + " as seconds) s"
	}
	return fmt.Sprintf(`cross join lateral (
    select case
        when c.%[1]s is not distinct from %[2]s then %[4]s
        when c.%[1]s > %[3]s and c.%[1]s < c.time and c.time - %[3]s <= %[5]s then extract(epoch from c.time - c.%[1]s)::%[6]s
    end as seconds, c.%[1]s is distinct from %[2]s as reset) s`,
		quote(resetColumn), b.last(resetColumn), b.last("time"), elapsed, interval(b.stale), rateType)
}

// selected lists the columns.
func (b ratesBuilder) selected() string {
	var list []string
	counters := b.f.Counters()
	for _, c := range b.order {
		switch {
		case c == catalogue.SecondsColumn:
			list = append(list, "s.seconds")
		case slices.Contains(counters, c):
			list = append(list, b.rate(c)+" as "+quote(c))
		default:
			list = append(list, "c."+quote(c))
		}
	}
	return strings.Join(list, ",\n    ")
}

// rate is never negative. A counter that fell without a word of a reset has
// been reset at a time that nobody knows, or is none.
func (b ratesBuilder) rate(counter string) string {
	now, last := "c."+quote(counter), b.last(counter)
	grown := fmt.Sprintf("when %[1]s >= %[2]s and %[2]s >= 0 then (%[1]s - %[2]s)::%[3]s", now, last, rateType)
	if b.hasReset() {
		grown = fmt.Sprintf("when s.reset then case when %[1]s >= 0 then %[1]s::%[2]s end %[3]s", now, rateType, grown)
	}
	return "case " + grown + " end / s.seconds"
}

// help is the comment on the view.
func (b ratesBuilder) help() string {
	name := "metrics." + b.f.Name + catalogue.RatesSuffix
	return fmt.Sprintf("Counters of metrics.%[1]s as rates per second since the row before, at most %.0[2]f s; null after a longer gap "+
		"and for a counter that fell, since %[3]s where the counters began anew. The function of the same name takes a range of time and is "+
		"much faster: select * from %[4]s(now() - interval '6 hours') where server_id = …", b.f.Name, b.stale.Seconds(), resetColumn, name)
}

func (b ratesBuilder) comments(sql *strings.Builder, name string) {
	var columns []catalogue.Column
	for _, c := range b.f.Columns {
		if c.Kind == catalogue.Counter {
			if c.Help = strings.TrimSpace(c.Help + " Per second."); c.Unit != "" {
				c.Unit += "/s"
			}
		}
		columns = append(columns, c)
	}
	columns = append(columns, catalogue.Column{Name: catalogue.SecondsColumn, Help: "What the rates were taken over.", Unit: "seconds"})
	comment(sql, name, columns)
	fmt.Fprintf(sql, "comment on function %[1]s(timestamptz, timestamptz) is %[2]s;\n", name,
		literal("The view of the same name for times from since on and before until, which is much faster than the view."))
}
