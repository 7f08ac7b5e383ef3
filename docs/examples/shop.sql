-- A shop, and the function through which the collector sees it: numbers per
-- status, and nothing of any order or customer. Run it in the shop's database.
create schema if not exists shop;

create table if not exists shop.orders (
  id         bigint generated always as identity primary key,
  status     text not null default 'new',
  changed_at timestamptz not null default now()
);

-- How many orders ever came into each status.
create table if not exists shop.status_totals (
  status  text primary key,
  entered bigint not null
);

create or replace function shop.count_status() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
begin
  if tg_op = 'UPDATE' and new.status = old.status then
    return new;
  end if;
  insert into shop.status_totals as t values (new.status, 1)
  on conflict (status) do update set entered = t.entered + 1;
  new.changed_at := now();
  return new;
end
$$;

drop trigger if exists count_status on shop.orders;
create trigger count_status
  before insert or update of status on shop.orders
  for each row execute function shop.count_status();

create or replace function shop.orders_per_status(
  out status text, out orders bigint, out oldest_age double precision, out entered bigint) returns setof record
language sql stable security definer set search_path = pg_catalog as $$
  select t.status, count(o.id), extract(epoch from now() - min(o.changed_at))::double precision, t.entered
    from shop.status_totals t
    left join shop.orders o on o.status = t.status
   group by t.status, t.entered
$$;

revoke all on function shop.orders_per_status() from public;
grant usage on schema shop to pganalytics;
grant execute on function shop.orders_per_status() to pganalytics;
