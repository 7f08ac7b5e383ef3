-- Roles and rights of a fresh database, run once by its image as superuser.
-- TimescaleDB itself is in every database of that image already.

\set password `cat /run/secrets/database_password`
\set collector_password `cat /run/secrets/collector_database_password`

-- Owns all that is stored, and is no superuser.
create role pganalytics login password :'password';
alter database metrics owner to pganalytics;

-- Reads metrics and nothing else: a group for the logins of dashboards, which
-- migrate gives its rights, for the owner may not make roles.
create role pganalytics_reader nologin;

-- Watches this server: reads statistics, and no one's rows.
create role pganalytics_collector login password :'collector_password' in role pg_monitor;
create extension pg_stat_statements;
