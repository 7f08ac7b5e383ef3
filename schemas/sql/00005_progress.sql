-- What each process that loads has committed, so that it can tell a database
-- that has gone back in time: a restored backup, a standby that was behind.

-- +goose Up

-- One row per process and slot, written in every transaction of a load and by
-- every probe. Loads that are under way at once use different slots, so that
-- they never wait for one another's row.
create table ingest.progress (
    ingester           uuid        not null,
    slot               smallint    not null,
    commits            bigint      not null,
    stream_incarnation text        not null,
    ack_floor          bigint      not null,
    at                 timestamptz not null,
    primary key (ingester, slot)
) with (fillfactor = 50); -- updates stay on their page and out of the index

comment on table ingest.progress is 'What each process that loads has committed. A process that remembers more than its rows say has found a database from the past.';
comment on column ingest.progress.ingester is 'Random; a process has it for its life.';
comment on column ingest.progress.slot is '0 is for probes, the others for loads.';
comment on column ingest.progress.ack_floor is 'Everything on the stream up to this sequence was acknowledged, and so committed, before this row was.';

-- The progress of slot 0 has taken its place.
drop table ingest.probe;
