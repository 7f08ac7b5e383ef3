-- Administration of collectors: deletion that keeps history, enrolment tokens
-- for fleets, for a source and for a collector that is there already.

-- +goose Up

-- A deleted collector stays, disabled and with its certificates revoked, for
-- its history; only its name is free again.
alter table identity.collector add column deleted_at timestamptz;
alter table identity.collector add check (deleted_at is null or status = 'disabled');
alter table identity.collector drop constraint collector_name_key;
create unique index collector_name_key on identity.collector (name) where deleted_at is null;

alter table identity.enrollment_token
    add column bound_source cidr,                              -- null: from anywhere
    add column collector_id uuid references identity.collector, -- null: it enrols a new one
    add column is_list boolean not null default false;         -- it enrols each of its names once

create table identity.enrollment_name (
    token_id text not null references identity.enrollment_token,
    name     text not null,
    used_at  timestamptz,
    used_by  uuid references identity.collector deferrable initially deferred,
    primary key (token_id, name),
    check ((used_at is null) = (used_by is null))
);

-- The enrolment that a certificate came from: so that an answer that got lost
-- can be given again.
alter table identity.certificate add column enrolled_by text references identity.enrollment_token;
create index certificate_enrolled_by on identity.certificate (enrolled_by) where enrolled_by is not null;

-- Who has been stored lately? Batches are stored in the order of stored_at, so
-- the smallest kind of index answers it, at no cost to the loads.
create index batch_stored_at on ingest.batch using brin (stored_at) with (pages_per_range = 16);
