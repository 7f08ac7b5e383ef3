package store

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// instanceFamily tells what a server is; its rows fill in metrics.server.
const instanceFamily = "pg_instance"

// All times are those of the batches, none is the database's, so that a
// replay ends with the same rows. A known server is touched once a minute or
// when something about it changed: locking its row in every load would make
// loads wait for one another.
const (
	serverSelect = `
insert into metrics.server as t (server_id, collector_id, name, system_identifier, version, role, labels, first_seen, last_seen)
select s.server_id, s.collector_id, s.name, i.system_identifier, i.version, coalesce(i.role, 'unknown'), s.labels::jsonb, s.first_at, s.last_at
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[])
     as s(server_id, collector_id, name, labels, first_at, last_at, rows_from, rows_to)
left join lateral (`

	serverInstance = `
    select p.system_identifier, p.version_num as version, case when p.in_recovery then 'standby' else 'primary' end as role
    from metrics.pg_instance p
    where p.server_id = s.server_id and p.time between s.rows_from and s.rows_to and p.in_recovery is not null
    order by p.time desc limit 1`

	serverNoInstance = `
    select null::text as system_identifier, null::integer as version, null::text as role`

	serverMerge = `
) i on true
left join metrics.server o on o.server_id = s.server_id
where o.server_id is null
   or s.last_at >= o.last_seen + interval '1 minute'
   or s.last_at >= o.last_seen
      and (s.labels::jsonb, coalesce(i.system_identifier, o.system_identifier), coalesce(i.version, o.version), coalesce(i.role, o.role))
          is distinct from (o.labels, o.system_identifier, o.version, o.role)
order by s.server_id
on conflict (server_id) do update set
    system_identifier = coalesce(excluded.system_identifier, t.system_identifier),
    version = coalesce(excluded.version, t.version),
    role = case excluded.role when 'unknown' then t.role else excluded.role end,
    labels = excluded.labels,
    last_seen = excluded.last_seen
where excluded.last_seen >= t.last_seen`
)

// serverStatement reads pg_instance only where the catalogue has it with the
// columns that are needed.
func serverStatement(cat *catalogue.Catalogue) string {
	f, ok := cat.Family(instanceFamily)
	if !ok || f.Dimension {
		return serverSelect + serverNoInstance + serverMerge
	}
	for name, typ := range map[string]catalogue.Type{
		"version_num": catalogue.Integer, "in_recovery": catalogue.Boolean, "system_identifier": catalogue.Text,
	} {
		if i, ok := f.Column(name); !ok || f.Columns[i].Type != typ {
			return serverSelect + serverNoInstance + serverMerge
		}
	}
	return serverSelect + serverInstance + serverMerge
}

// sighting is what a load tells about one server.
type sighting struct {
	collector        uuid.UUID
	name             string
	labels           []batch.Label // of the newest batch
	firstAt, lastAt  time.Time
	rowsFrom, rowsTo *time.Time // of its pg_instance rows in this load
}

// seeServers queues what brings metrics.server up to what the stored items
// tell.
func (s *Store) seeServers(to *pgx.Batch, items []batch.Item) error {
	seen := map[uuid.UUID]*sighting{}
	for i := range items {
		for j := range items[i].Sections {
			see(seen, items[i].Batch, &items[i].Sections[j])
		}
	}
	if len(seen) == 0 {
		return nil
	}
	ids := slices.SortedFunc(maps.Keys(seen), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	var (
		servers          []pgtype.UUID
		collectors       []pgtype.UUID
		names, labels    []string
		firstAt, lastAt  []time.Time
		rowsFrom, rowsTo []*time.Time
	)
	for _, id := range ids {
		v := seen[id]
		text, err := labelText(v.labels)
		if err != nil {
			return err
		}
		servers = append(servers, pgUUID(id))
		collectors = append(collectors, pgUUID(v.collector))
		names = append(names, v.name)
		labels = append(labels, text)
		firstAt = append(firstAt, v.firstAt)
		lastAt = append(lastAt, v.lastAt)
		rowsFrom = append(rowsFrom, v.rowsFrom)
		rowsTo = append(rowsTo, v.rowsTo)
	}
	to.Queue(s.servers, servers, collectors, names, labels, firstAt, lastAt, rowsFrom, rowsTo)
	return nil
}

func see(seen map[uuid.UUID]*sighting, b *batch.Batch, section *batch.Section) {
	v, ok := seen[section.ServerID]
	if !ok {
		v = &sighting{collector: b.CollectorID, name: section.Server, labels: b.Labels, firstAt: b.SentAt, lastAt: b.SentAt}
		seen[section.ServerID] = v
	}
	if b.SentAt.Before(v.firstAt) {
		v.firstAt = b.SentAt
	}
	if b.SentAt.After(v.lastAt) {
		v.lastAt, v.labels = b.SentAt, b.Labels
	}
	if section.Family != instanceFamily || section.Rows == 0 {
		return
	}
	if v.rowsFrom == nil || section.MinTime.Before(*v.rowsFrom) {
		v.rowsFrom = &section.MinTime
	}
	if v.rowsTo == nil || section.MaxTime.After(*v.rowsTo) {
		v.rowsTo = &section.MaxTime
	}
}

func labelText(labels []batch.Label) (string, error) {
	object := make(map[string]string, len(labels))
	for _, l := range labels {
		object[l.Name] = l.Value
	}
	text, err := json.Marshal(object)
	return string(text), err
}
