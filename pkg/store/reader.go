package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/fault"
)

// ErrNoReader is returned when the server has no role pganalytics_reader and
// the user of the database URL may not make one. The text says what to run.
var ErrNoReader = errors.New("nobody but the owner can read the metrics, for there is no role pganalytics_reader and this user may not make it; " +
	`run "create role pganalytics_reader nologin" as superuser, then migrate again`)

const (
	// Roles belong to the server, not to the database, so another database's
	// may be making it at the same moment, unseen by any lock of this one.
	makeReader = `
do $$ begin
    create role pganalytics_reader nologin;
exception when duplicate_object or unique_violation then null;
end $$`

	// Only what is lacking: granting what is granted already would write to the
	// system catalogue at every start, and there meet with others.
	missingGrants = `
select 'grant usage on schema metrics to pganalytics_reader'
where not has_schema_privilege('pganalytics_reader', 'metrics', 'usage')
union all
select format('grant select on metrics.%I to pganalytics_reader', c.relname)
from pg_class c
where c.relnamespace = 'metrics'::regnamespace and c.relkind in ('r', 'v', 'm', 'p', 'f')
  and pg_has_role(c.relowner, 'usage') and not has_table_privilege('pganalytics_reader', c.oid, 'select')
union all
select 'alter default privileges in schema metrics grant select on tables to pganalytics_reader'
where not exists (
    select from pg_default_acl d, aclexplode(d.defaclacl) a
    where d.defaclrole = (select oid from pg_roles where rolname = current_user) and d.defaclobjtype = 'r'
      and d.defaclnamespace = 'metrics'::regnamespace
      and a.grantee = 'pganalytics_reader'::regrole and a.privilege_type = 'SELECT')`
)

// EnsureReader gives the role pganalytics_reader what a dashboard needs and no
// more: to read the schema metrics, with the tables and views that will be
// there one day. It is a group without login, for all databases of the server;
// it is made when it is lacking and the user of databaseURL may, and else the
// error is ErrNoReader. Any number of processes may call it at once.
func EnsureReader(ctx context.Context, databaseURL string) (err error) {
	cfg, err := ddlSession(databaseURL)
	if err != nil {
		return fmt.Errorf("ensure the reader: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("ensure the reader: %w", fault.Wrap(fault.Unavailable, err))
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }() // and so unlocks
	if err := ensureRole(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", int64(schemaLock)); err != nil {
		return session{conn}.failed("ensure the reader: wait for others", err)
	}
	rows, err := conn.Query(ctx, missingGrants)
	if err != nil {
		return session{conn}.failed("ensure the reader: look for grants", err)
	}
	grants, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(grants) == 0 {
		return session{conn}.failed("ensure the reader: look for grants", err)
	}
	if _, err := conn.Exec(ctx, strings.Join(grants, ";\n"), pgx.QueryExecModeSimpleProtocol); err != nil {
		return session{conn}.failed("ensure the reader: grant", err)
	}
	return nil
}

func ensureRole(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	err := conn.QueryRow(ctx, "select exists (select from pg_roles where rolname = 'pganalytics_reader')").Scan(&exists)
	if err != nil || exists {
		return session{conn}.failed("ensure the reader: look for the role", err)
	}
	_, err = conn.Exec(ctx, makeReader)
	if SQLState(err) == "42501" { // insufficient privilege
		return fault.Wrap(fault.Internal, ErrNoReader)
	}
	return session{conn}.failed("ensure the reader: make the role", err)
}
