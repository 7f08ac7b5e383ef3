-- The ledger of stored batches and the servers they came from. The tables of
-- the metric families are not here: they come from the catalogue.

-- +goose Up
create schema if not exists ingest;
create schema if not exists metrics;

-- One row per stored batch, written in the transaction that copies its rows:
-- a batch is stored if and only if its row is here.
create table ingest.batch (
    sent_at            timestamptz not null,
    collector_id       uuid        not null,
    batch_id           uuid        not null,
    epoch              uuid,
    sequence           bigint,
    previous_epoch     uuid,
    previous_sequence  bigint,
    refused            bigint[]    not null default '{}',
    stream_seq         bigint      not null,
    stream_incarnation text        not null,
    digest             bytea       not null,
    row_count          bigint      not null,
    sections           jsonb       not null,
    stored_at          timestamptz not null default now(),
    unique (sent_at, collector_id, batch_id)
);
select create_hypertable('ingest.batch', by_range('sent_at', interval '1 day'), create_default_indexes => false);

comment on table ingest.batch is 'Ledger: one row per stored batch, written in the transaction that stores its rows.';
comment on column ingest.batch.sent_at is 'By the sender''s clock; a function of the batch, never of the attempt to send it.';
comment on column ingest.batch.epoch is 'Life of the sender''s spool; null when the sender does not number its batches.';
comment on column ingest.batch.sequence is 'Number within the epoch, from 1; a gap is visible loss.';
comment on column ingest.batch.previous_sequence is 'Last number of the epoch before, in an epoch''s first batch.';
comment on column ingest.batch.refused is 'Numbers of this epoch that a gateway refused for good: no gaps.';
comment on column ingest.batch.stream_incarnation is 'Tells the stream from one recreated under its name.';
comment on column ingest.batch.digest is 'SHA-256 over all that the batch stores.';
comment on column ingest.batch.sections is 'Array of {family, server_id, min_time, max_time, rows}.';

-- Everything sent before the floor may have been pruned from the ledger, so
-- that a batch below it can no longer be told from a repeated one.
create table ingest.floor (
    sent_at  timestamptz not null default 'epoch',
    only_row boolean     primary key default true check (only_row)
);
insert into ingest.floor default values;

-- Written by the probe that tells whether the database takes writes; one row
-- per backend, so that probes never wait for one another.
create table ingest.probe (
    backend_pid integer     primary key,
    at          timestamptz not null
);

create table metrics.server (
    server_id         uuid        primary key,
    collector_id      uuid        not null,
    name              text        not null,
    system_identifier text,
    version           integer,
    role              text        not null default 'unknown' check (role in ('primary', 'standby', 'unknown')),
    labels            jsonb       not null default '{}',
    first_seen        timestamptz not null,
    last_seen         timestamptz not null,
    retired_at        timestamptz
);
comment on table metrics.server is 'Monitored servers, as their collectors report them.';
comment on column metrics.server.server_id is 'UUIDv5 of the collector''s id and the server''s name: computed, never looked up.';
comment on column metrics.server.version is 'server_version_num, such as 170005.';
comment on column metrics.server.labels is 'Labels of the collector.';
comment on column metrics.server.last_seen is 'Newest sent_at of its batches, to the minute.';
