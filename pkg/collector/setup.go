package collector

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"pganalytics/pkg/catalogue"
)

// roleName keeps to what needs no care in any quoting.
var roleName = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,63}$`)

// SetupSQL returns a script for psql that prepares a server: the role with
// what it needs and no more, the extensions that families read, and their
// functions. A superuser runs it in every database that is to be read. Run
// again it changes nothing.
func SetupSQL(cat *catalogue.Catalogue, role string) (string, error) {
	if !roleName.MatchString(role) {
		return "", fmt.Errorf("role %q: want 1 to 63 letters, digits or any of _ . @ -", role)
	}
	var b strings.Builder
	b.WriteString(strings.ReplaceAll(setupRole, "{role}", role))
	for _, name := range extensions(cat) {
		b.WriteString(strings.ReplaceAll(setupExtension, "{extension}", name))
	}
	b.WriteString(setupSchema)
	for _, f := range cat.Families() {
		if f.Setup != "" {
			fmt.Fprintf(&b, "\n-- For %s.\n%s;\n", f.Name, strings.TrimSuffix(f.Setup, ";"))
		}
	}
	b.WriteString(strings.ReplaceAll(setupGrants, "{role}", role))
	return b.String(), nil
}

// extensions returns what the families require, sorted.
func extensions(cat *catalogue.Catalogue) []string {
	var names []string
	for _, f := range cat.Families() {
		if name := f.Requires.Extension; name != "" {
			names = append(names, strings.ReplaceAll(name, "'", ""))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

const setupRole = `-- Prepares a PostgreSQL server for the collector. Run it with psql as a
-- superuser, or as what a provider has in place of one, on the primary, in
-- every database that is to be read:
--
--   for db in $(psql -XAtc "select datname from pg_database where datallowconn and not datistemplate"); do
--     collector setup-sql --role {role} | psql -X -d "$db"
--   done
--
-- It may be run again at any time.
\set ON_ERROR_STOP on
set search_path = public, pg_temp;

-- The role. It has no password yet: in psql say \password {role}
-- It needs no rights on tables; pg_monitor lets it read statistics and settings.
do $setup$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = '{role}') then
    create role "{role}" login connection limit 5;
  end if;
  if not pg_catalog.pg_has_role('{role}', 'pg_monitor', 'usage') then
    grant pg_monitor to "{role}";
  end if;
  if not pg_catalog.has_database_privilege('{role}', pg_catalog.current_database(), 'connect') then
    execute pg_catalog.format('grant connect on database %I to %I', pg_catalog.current_database(), '{role}');
  end if;
end
$setup$;
`

const setupExtension = `
-- Extension {extension}. It is read in the database that the collector's
-- conninfo names, and some must stand in shared_preload_libraries too.
do $setup$
begin
  if not exists (select from pg_catalog.pg_available_extensions where name = '{extension}') then
    raise notice 'extension {extension} is not installed on this machine';
  elsif '{extension}' = 'pg_stat_statements' and pg_catalog.current_setting('shared_preload_libraries') !~ '\mpg_stat_statements\M' then
    raise notice 'add pg_stat_statements to shared_preload_libraries, restart the server, and run this again';
  else
    create extension if not exists "{extension}";
  end if;
end
$setup$;
`

// Whoever owns the schema could put functions of their own in place of ours.
const setupSchema = `
-- Functions that read what the role itself may not, in a schema that nobody
-- else writes to.
create schema if not exists pganalytics;
do $setup$
begin
  if exists (select from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner
              where n.nspname = 'pganalytics' and not r.rolsuper and r.rolname <> current_user) then
    raise exception 'schema pganalytics belongs to another role, which is no superuser: look at it, drop it, and run this again';
  end if;
end
$setup$;
revoke all on schema pganalytics from public;
`

const setupGrants = `
grant usage on schema pganalytics to "{role}";
revoke all on all functions in schema pganalytics from public;
grant execute on all functions in schema pganalytics to "{role}";
`
