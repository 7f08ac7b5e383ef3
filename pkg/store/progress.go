package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/fault"
)

// Rewind tells of a database that lacks what this process saw committed: it
// was restored from a backup, or its place was taken by a standby that was
// behind.
type Rewind struct {
	Incarnation string // of the stream that NoteAckFloor named last; empty when it named none
	From        uint64 // batches from this sequence of that stream on may be missing; 0 when any may
}

const (
	// The database counts, so that a commit whose outcome nobody learned is
	// counted too.
	advance = `
insert into ingest.progress as p (ingester, slot, commits, stream_incarnation, ack_floor, at)
values ($1, $2, 1, $3, $4, now())
on conflict (ingester, slot) do update set
    commits = p.commits + 1, stream_incarnation = excluded.stream_incarnation, ack_floor = excluded.ack_floor, at = excluded.at
returning commits, at`

	readProgress = `select slot, commits from ingest.progress where ingester = $1`

	// What the database, as it is, vouches for. Of other processes only what
	// they wrote well before this one began, and so before the time that the
	// database went back to: one that has not noticed yet may have written since.
	readVouched = `
select coalesce(max(ack_floor), 0), count(*) > 0
from ingest.progress
where stream_incarnation = $1 and (ingester = $2 or at < $3::timestamptz - interval '1 minute')`

	readAckFloor = `select coalesce(max(ack_floor), 0), count(*) > 0 from ingest.progress where stream_incarnation = $1`

	// A process is dead once none of its rows has moved for a week. Its rows go
	// when a live one knows as much about the stream, or of a newer stream.
	pruneProgress = `
with live as (select * from ingest.progress where at >= now() - interval '7 days')
delete from ingest.progress p
where p.ingester not in (select ingester from live)
  and exists (select from live where p.stream_incarnation = '' or stream_incarnation <> ''
                                 and (stream_incarnation <> p.stream_incarnation or ack_floor >= p.ack_floor))`
)

// probeSlot is the slot of all probes.
const probeSlot = 0

// manySlots is the number of slots from which on one that may still be locked
// is used again. Only a load whose commit had no answer leaves such a one.
const manySlots = 1000

// progress is what this process remembers of its own commits.
type progress struct {
	id        uuid.UUID
	comparing sync.Mutex // held while a new session is compared

	mu       sync.Mutex
	commits  []int64   // by slot: as the database counted when the last one was confirmed
	free     []int     // the last one released is used first
	doubtful []int     // their rows may still be locked; the oldest first
	began    time.Time // the database's clock at the first of them; zero before
	stream   string
	floor    uint64
	rewinds  int // a session belongs to the database of the rewind after which it was made
}

func newProgress() *progress {
	return &progress{id: uuid.New(), commits: make([]int64, 1)}
}

// NoteAckFloor tells that everything up to this sequence of the stream is
// acknowledged and stored. Loads write it down. While a gap is being filled
// that is only what lies before it.
func (s *Store) NoteAckFloor(incarnation string, floor uint64) {
	p := s.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream, p.floor = incarnation, floor
}

// AckFloor returns the highest sequence of the stream up to which everything
// was acknowledged when the database last heard of it, and whether it heard of
// that stream at all. The stream may have gone on since.
func (s *Store) AckFloor(ctx context.Context, incarnation string) (floor uint64, known bool, err error) {
	err = s.session(ctx, func(ses session) error {
		return ses.failed("read", ses.QueryRow(ctx, readAckFloor, incarnation).Scan(&floor, &known))
	})
	if err != nil {
		return 0, false, fmt.Errorf("look up the acknowledged floor: %w", err)
	}
	return floor, known, nil
}

// take returns a slot that no transaction of this process is using.
func (p *progress) take() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		slot := p.free[n-1]
		p.free = p.free[:n-1]
		return slot
	}
	if len(p.commits) > manySlots && len(p.doubtful) > 0 {
		slot := p.doubtful[0]
		p.doubtful = p.doubtful[1:]
		return slot
	}
	p.commits = append(p.commits, 0)
	return len(p.commits) - 1
}

// release gives back a slot of take. After an error its row may be locked
// until the database has noticed.
func (p *progress) release(slot int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.doubtful = append(p.doubtful, slot)
		return
	}
	p.free = append(p.free, slot)
}

// errRewound means that the transaction was one of a database that has been
// replaced meanwhile. It counts as not done.
var errRewound = fault.Wrap(fault.Unavailable, errors.New("the database has gone back in time meanwhile"))

// commit runs the last statements of the transaction, writes the process's
// progress and ends it, in one round trip. An error means that the outcome is
// not known unless the database told it.
func (s *Store) commit(ctx context.Context, ses session, last *pgx.Batch, slot int) error {
	p := s.progress
	p.mu.Lock()
	stream, floor, current := p.stream, p.floor, ses.rewinds() == p.rewinds
	p.mu.Unlock()
	if !current {
		return errRewound
	}
	var commits int64
	var at time.Time
	last.Queue(advance, p.id, slot, stream, int64(floor)).QueryRow(func(row pgx.Row) error { return row.Scan(&commits, &at) })
	if err := ses.commitAfter(ctx, last); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ses.rewinds() != p.rewinds {
		return errRewound
	}
	p.commits[slot] = max(p.commits[slot], commits)
	if p.began.IsZero() {
		p.began = at
	}
	return nil
}

// admit lets a new session in once its database is known to hold what this
// process committed.
func (s *Store) admit(ctx context.Context, conn *pgx.Conn) error {
	s.progress.comparing.Lock()
	defer s.progress.comparing.Unlock()
	remembered, stream := s.progress.recall() // before the rows are read: loads go on meanwhile
	found, err := s.readProgress(ctx, conn)
	if err != nil {
		// Without its tables the database is one that was not migrated, or it was
		// restored from before that.
		return failure("compare the database's progress with ours", err, connectionLost)
	}
	if remembered.behind(found) {
		from, err := s.firstDoubtful(ctx, conn, stream)
		if err != nil {
			return failure("ask how far the database has gone back", err, connectionLost)
		}
		if err := s.rewound(ctx, Rewind{Incarnation: stream, From: from}); err != nil {
			return fault.Wrap(fault.Unavailable, fmt.Errorf("the database has gone back in time: %w", err))
		}
		s.progress.adopt(found, from)
	}
	conn.PgConn().CustomData()[rewindsKey] = s.progress.generation()
	return nil
}

func (s *Store) rewound(ctx context.Context, r Rewind) error {
	s.log.Error("database lacks what was committed; nothing is loaded until that is taken care of",
		"stream_incarnation", r.Incarnation, "from_stream_seq", r.From)
	err := errors.New("nobody takes care of what it lacks")
	if s.cfg.OnRewind != nil {
		err = s.cfg.OnRewind(ctx, r)
	}
	s.metrics.rewound(err)
	return err
}

// firstDoubtful returns the first sequence of the stream that the database
// does not vouch for.
func (s *Store) firstDoubtful(ctx context.Context, conn *pgx.Conn, stream string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	var floor int64
	var known bool
	err := conn.QueryRow(ctx, readVouched, stream, s.progress.id, s.progress.beginning()).Scan(&floor, &known)
	if err != nil || !known || stream == "" {
		return 0, err
	}
	return uint64(floor) + 1, nil
}

// readProgress returns the commits of this process's slots.
func (s *Store) readProgress(ctx context.Context, conn *pgx.Conn) (map[int]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	rows, err := conn.Query(ctx, readProgress, s.progress.id)
	if err != nil {
		return nil, err
	}
	found := map[int]int64{}
	var slot int
	var commits int64
	_, err = pgx.ForEachRow(rows, []any{&slot, &commits}, func() error {
		found[slot] = commits
		return nil
	})
	return found, err
}

// memory is the commits of each slot.
type memory []int64

// behind reports whether more is remembered than was found.
func (m memory) behind(found map[int]int64) bool {
	for slot, commits := range m {
		if found[slot] < commits {
			return true
		}
	}
	return false
}

func (p *progress) recall() (memory, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append(memory(nil), p.commits...), p.stream
}

// adopt takes the database for what it is, and vouches for no more than it
// does; sessions from before are not used again.
func (p *progress) adopt(found map[int]int64, doubtful uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for slot := range p.commits {
		p.commits[slot] = found[slot]
	}
	p.floor = max(doubtful, 1) - 1
	p.rewinds++
}

func (p *progress) beginning() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.began
}

func (p *progress) generation() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rewinds
}

// rewindsKey is where a session keeps how many rewinds there had been when it
// was admitted.
const rewindsKey = "pganalytics rewinds"

func (ses session) rewinds() int {
	n, _ := ses.PgConn().CustomData()[rewindsKey].(int)
	return n
}
