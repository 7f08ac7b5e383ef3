package pgread

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// askAgain is when a key is asked for again whose content did not come: it was
// gone in between, or hidden.
const askAgain = time.Hour

// sentKeys remembers of a dimension whose content is asked for by key which
// keys were sent, and when they are sent again. It forgets keys that the last
// sample did not have.
type sentKeys struct {
	places []int // of the key columns among the family's
	seed   maphash.Seed
	due    map[uint64]int64
}

func newSentKeys(f *catalogue.Family) *sentKeys {
	k := &sentKeys{seed: maphash.MakeSeed(), due: map[uint64]int64{}}
	for _, name := range f.Key {
		i, _ := f.Column(name) // checked when the catalogue was loaded
		k.places = append(k.places, i)
	}
	return k
}

// known identifies rows that have their keys at these places.
func (k *sentKeys) known(places []int) func([]byte, []int) identity {
	return func(tuples []byte, starts []int) identity {
		return identity{key: hash(k.seed, tuples, starts, places)}
	}
}

// wanted returns the rows of keys whose content is to be read.
func (k *sentKeys) wanted(keys *result, at time.Time) []int {
	var rows []int
	due := make(map[uint64]int64, len(keys.ids))
	for row, id := range keys.ids {
		when, sent := k.due[id.key]
		if !sent || overdue(when, at, resendContent) {
			rows = append(rows, row)
		} else {
			due[id.key] = when
		}
	}
	k.due = due
	return rows
}

// note remembers what was asked for and came. After a result that was cut, the
// rest is asked for again at once.
func (k *sentKeys) note(keys *result, asked []int, contents *result, at time.Time) {
	if !contents.capped {
		for _, row := range asked {
			key := keys.ids[row].key
			k.due[key] = dueAfter(askAgain, at, key)
		}
	}
	for _, id := range contents.ids {
		k.due[id.key] = dueAfter(resendContent, at, id.key)
	}
}

// readKeyed reads the keys of a dimension and then the content of those that
// were not sent. Nothing new: nothing more is asked.
func (s *Server) readKeyed(ctx context.Context, conn *pgconn.PgConn, t *task, st *state, at time.Time) (*result, error) {
	if st.sent == nil {
		st.sent = newSentKeys(t.family)
	}
	places := make([]int, len(st.sent.places))
	for i := range places {
		places[i] = i
	}
	q := s.question(t, t.query.Keys, at)
	q.places, q.known = st.sent.places, st.sent.known(places)
	q.limit(t.reading.MaxRows)
	keys, err := ask(ctx, conn, q)
	if err != nil {
		return nil, err
	}
	asked := st.sent.wanted(keys, at)
	if len(asked) == 0 {
		return &result{elsewhere: keys.cut(), fixed: keys.fixed}, nil
	}
	q = s.question(t, t.query.SQL, at)
	q.known = st.sent.known(st.sent.places)
	for i, place := range st.sent.places {
		c := t.family.Columns[place]
		q.args = append(q.args, array(c.Type, keys, asked, i))
		q.oids = append(q.oids, arrayOIDs[c.Type])
	}
	contents, err := ask(ctx, conn, q)
	if err != nil {
		return nil, err
	}
	st.sent.note(keys, asked, contents, at)
	contents.elsewhere = keys.cut()
	return contents, nil
}

// arrayOIDs are those of the arrays of the types, in pg_type.
var arrayOIDs = [...]uint32{
	catalogue.Boolean:         1000,
	catalogue.SmallInt:        1005,
	catalogue.Integer:         1007,
	catalogue.BigInt:          1016,
	catalogue.Real:            1021,
	catalogue.DoublePrecision: 1022,
	catalogue.Text:            1009,
	catalogue.UUID:            2951,
	catalogue.TimestampTZ:     1185,
}

// array returns a field of some rows as an array in binary format. Its elements
// are fields as tuples have them.
func array(elements catalogue.Type, res *result, rows []int, field int) []byte {
	a := binary.BigEndian.AppendUint32(nil, 1) // dimension
	a = binary.BigEndian.AppendUint32(a, 0)    // no NULL: keys have none
	a = binary.BigEndian.AppendUint32(a, elements.OID())
	a = binary.BigEndian.AppendUint32(a, uint32(len(rows)))
	a = binary.BigEndian.AppendUint32(a, 1) // the first index
	for _, row := range rows {
		a = append(a, res.field(row, field)...)
	}
	return a
}

// field returns a field of a row that has no NULL, with its length before it.
func (r *result) field(row, field int) []byte {
	begin := 0
	if row > 0 {
		begin = r.ends[row-1]
	}
	rest := r.tuples[begin+2 : r.ends[row]]
	for range batch.LeadFields + field {
		rest = rest[4+binary.BigEndian.Uint32(rest):]
	}
	return rest[:4+binary.BigEndian.Uint32(rest)]
}
