-- Schema identity: who may send and who let them. It is written by authsvc
-- alone; gateways know what they need of it from the identity bucket.

-- +goose Up
create schema identity;

create table identity.collector (
    id             uuid primary key,
    name           text not null unique,
    hostname       text not null,
    address        text not null default '',
    version        text not null default '',
    status         text not null check (status in ('registered', 'active', 'offline', 'disabled', 'locked')),
    generation     integer not null check (generation > 0), -- of the newest certificate
    config_version bigint not null default 0,
    last_seen      timestamptz,
    created_at     timestamptz not null,
    updated_at     timestamptz not null  -- rises with every change that verifiers must learn of
);

create table identity.certificate (
    thumbprint    text primary key check (thumbprint ~ '^sha256:[0-9a-f]{64}$'),
    collector_id  uuid not null references identity.collector,
    generation    integer not null check (generation > 0),
    -- The generation that was presented to obtain this one; null after enrolment.
    predecessor   integer check (predecessor < generation),
    -- This one was issued although another had been, unused, to the same predecessor.
    is_overlap    boolean not null default false,
    serial        text not null,
    -- SHA-256 of the public key: a renewal repeated with the same key is the same renewal.
    key_hash      bytea not null check (octet_length(key_hash) = 32),
    der           bytea not null,
    not_before    timestamptz not null,
    not_after     timestamptz not null,
    first_used_at timestamptz,
    revoked_at    timestamptz,
    unique (collector_id, generation)
);

create index certificate_revoked on identity.certificate (not_after) where revoked_at is not null;

create table identity.enrollment_token (
    id           text primary key,
    secret_hash  bytea not null check (octet_length(secret_hash) = 32), -- SHA-256; the token itself is nowhere
    bound_name   text,                                                  -- null: any name
    created_by   text not null,
    created_at   timestamptz not null,
    expires_at   timestamptz not null check (expires_at > created_at and expires_at <= created_at + interval '7 days'),
    revoked_at   timestamptz,
    used_at      timestamptz,
    -- Deferred: the token is taken before there is a collector.
    used_by      uuid references identity.collector deferrable initially deferred,
    check ((used_at is null) = (used_by is null))
);

create table identity.audit (
    id            bigint generated always as identity primary key,
    at            timestamptz not null,
    actor         text not null,
    action        text not null,
    resource_type text not null,
    resource_id   text not null,
    result        text not null check (result in ('success', 'refused')),
    source_ip     inet,
    changes       jsonb not null default '{}'
);

create index audit_at on identity.audit (at);

-- +goose StatementBegin
create function identity.refuse_audit_change() returns trigger language plpgsql as $$
begin
    raise exception 'identity.audit is append only' using errcode = 'insufficient_privilege';
end
$$;
-- +goose StatementEnd

create trigger append_only before update or delete or truncate on identity.audit
    for each statement execute function identity.refuse_audit_change();
