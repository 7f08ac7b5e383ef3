-- People, their sessions, and the API tokens that they make.

-- +goose Up

-- A deleted user stays, disabled, so that the audit and verifiers know of it;
-- only its name is free again.
create table identity.app_user (
    id                   uuid primary key,
    username             text not null check (username ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    email                text not null default '',
    full_name            text not null default '',
    role                 text not null check (role in ('viewer', 'operator', 'admin')),
    is_active            boolean not null,
    password_hash        text not null,
    must_change_password boolean not null,
    -- Rises with what makes older access tokens wrong: a new role, a new password.
    generation           integer not null check (generation > 0),
    last_login           timestamptz,
    created_at           timestamptz not null,
    updated_at           timestamptz not null, -- rises with every change that verifiers must learn of
    deleted_at           timestamptz,
    check (deleted_at is null or not is_active)
);

create unique index app_user_username_key on identity.app_user (username) where deleted_at is null;

-- A family of refresh tokens, from one login.
create table identity.session (
    id         uuid primary key,
    user_id    uuid not null references identity.app_user,
    created_at timestamptz not null,
    source_ip  inet,
    ended_at   timestamptz,
    end_reason text check (end_reason in ('logout', 'reuse', 'password', 'disabled', 'deleted')),
    check ((ended_at is null) = (end_reason is null))
);

create index session_live on identity.session (user_id) where ended_at is null;
create index session_ended on identity.session (ended_at) where ended_at is not null;

-- A session's refresh tokens, each used once; the last one is unused.
create table identity.refresh_token (
    id         uuid primary key,
    session_id uuid not null references identity.session on delete cascade,
    issued_at  timestamptz not null,
    expires_at timestamptz not null check (expires_at > issued_at),
    used_at    timestamptz,
    successor  uuid references identity.refresh_token on delete set null deferrable initially deferred
);

create index refresh_token_session on identity.refresh_token (session_id);
create index refresh_token_expires on identity.refresh_token (expires_at);
create index refresh_token_successor on identity.refresh_token (successor) where successor is not null;
-- Whatever happens at once, a session has one token that can be used.
create unique index refresh_token_unused on identity.refresh_token (session_id) where used_at is null;

create table identity.api_token (
    id           text primary key,
    name         text not null,
    secret_hash  text not null check (secret_hash ~ '^[0-9a-f]{64}$'), -- SHA-256; the token itself is nowhere
    scopes       text[] not null check (cardinality(scopes) > 0),
    created_by   text not null,
    created_at   timestamptz not null,
    expires_at   timestamptz not null check (expires_at > created_at),
    revoked_at   timestamptz,
    last_used_at timestamptz
);

create index audit_actor on identity.audit (actor, at);
create index audit_resource on identity.audit (resource_type, resource_id, at);
