-- What collectors pull: every version of every document, for ever.

-- +goose Up

-- The newest version of a collector's own document counts, and else the newest
-- of the default. Numbers are given over all documents, so that of two versions
-- the newer is known whatever they are of.
create table identity.collector_config (
    version      bigint primary key check (version > 0),
    collector_id uuid references identity.collector, -- null: the default, for collectors without a document of their own
    document     text not null,                      -- YAML or JSON as it was written; empty: there is none any more
    author       text not null check (author <> ''),
    comment      text not null check (comment <> ''),
    created_at   timestamptz not null
);
create index collector_config_newest on identity.collector_config (collector_id, version desc);
comment on table identity.collector_config is 'Configuration that collectors pull: append only.';

-- +goose StatementBegin
create function identity.refuse_config_change() returns trigger language plpgsql as $$
begin
    raise exception 'identity.collector_config is append only' using errcode = 'insufficient_privilege';
end
$$;
-- +goose StatementEnd

create trigger append_only before update or delete or truncate on identity.collector_config
    for each statement execute function identity.refuse_config_change();
