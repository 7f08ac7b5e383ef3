-- Batches that people gave up.

-- +goose Up
alter table ingest.batch add column discarded text;
comment on column ingest.batch.discarded is 'Why the batch was given up; its rows are not stored and it counts none. Null when it is stored.';
