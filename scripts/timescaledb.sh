#!/usr/bin/env bash
# A private PostgreSQL 17 with TimescaleDB (Apache edition) for tests and the demo.
#
# Debian's own packages are unpacked into a folder of their own and run there with their own libc: nothing is
# installed on the host, and no container is needed. Works as root (the server then runs as user postgres, else
# nobody) or as anyone, on Debian 12+ and Ubuntu 24.04+, on amd64 and arm64.
set -euo pipefail
umask 022

usage() {
  cat <<'USAGE'
usage: scripts/timescaledb.sh COMMAND
  install         unpack the packages into TSDB_ROOT, once
  bin             the same, and print the folder of PostgreSQL's programs
  start           start the server in TSDB_HOME (made at the first start) and print its URL
  url             print the URL of the server in TSDB_HOME
  stop [MODE]     stop it; MODE is smart, fast (default) or immediate
  wipe            stop it and delete TSDB_HOME
  uninstall       wipe, and delete TSDB_ROOT too
  run -- CMD...   run CMD with DATABASE_URL and TEST_DATABASE_URL of a throwaway server that is stopped and deleted
                  when CMD ends, however it ends; exits with CMD's status. Takes no notice of TSDB_HOME and TSDB_PORT.
environment:
  TSDB_ROOT    folder of the unpacked packages. Defaults to $XDG_CACHE_HOME/pganalytics-timescaledb-<uid>, and to
               /var/tmp/… when that is unset or for root, whose cache the server's user could not enter.
  TSDB_HOME    folder of one server: data, log, port, password. Defaults to TSDB_ROOT/home.
  TSDB_PORT    port on 127.0.0.1. Unset or 0: a free one, kept for the life of TSDB_HOME.
  TSDB_MIRROR  Address of a Debian mirror. Defaults to the host's own; needed on Ubuntu, whose mirrors are not Debian's.
USAGE
}

die() { echo "timescaledb.sh: $*" >&2; exit 1; }
. "$(dirname "$(readlink -f "$0")")/debian.sh"

uid=$(id -u)
cache=${XDG_CACHE_HOME:-/var/tmp}
[ "$uid" != 0 ] || cache=/var/tmp
root=${TSDB_ROOT:-$cache/pganalytics-timescaledb-$uid}
home=${TSDB_HOME:-$root/home}
dist=trixie
packages="postgresql-17 postgresql-17-timescaledb libc6 libgcc-s1 libstdc++6 libpq5 libssl3t64 libicu76 libxml2
 liblz4-1 libzstd1 zlib1g liblzma5 libxxhash0 libldap2 libsasl2-2 libpam0g libaudit1 libcap-ng0 libcap2 libsystemd0
 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1"
# Named after what it holds, so that a changed list is unpacked beside the old one, under servers that still run.
unpacked=$root/pg17-$(cksum <<<"$dist $packages" | cut -d' ' -f1)
bin=$unpacked/usr/lib/postgresql/17/bin

# File descriptors: 7 the owner's lock of a throwaway home, 8 the lock of TSDB_ROOT, 9 the lock of a home. The server
# must not inherit them, or they would stay locked for as long as it runs.
as_server() {
  (
    exec 7>&- 8>&- 9>&-
    cd /
    [ "$uid" = 0 ] || exec "$@"
    HOME=/ exec setpriv --reuid="$(server_id -u)" --regid="$(server_id -g)" --clear-groups "$@"
  )
}
server_id() { id "$1" postgres 2>/dev/null || id "$1" nobody; }
give_to_server() { [ "$uid" != 0 ] || chown "$(server_id -u):$(server_id -g)" "$@"; }

lock_root() {
  mkdir -p "$root" 2>/dev/null || die "cannot make $root: set TSDB_ROOT to a folder that you may write"
  { [ -O "$root" ] && exec 8>>"$root/lock"; } 2>/dev/null || die "$root belongs to someone else: set TSDB_ROOT to a folder of your own"
  flock 8
}
unlock_root() { exec 8>&-; }

# wipe deletes the lock's file with the home, so whoever waited for it looks again.
lock_home() {
  while :; do
    mkdir -p "$home" 2>/dev/null || die "cannot make $home: set TSDB_HOME to a folder that you may write"
    { exec 9>>"$home/lock"; } 2>/dev/null || die "cannot write to $home: set TSDB_HOME to a folder that you may write"
    flock 9
    [ "$home/lock" -ef /proc/self/fd/9 ] && return
  done
}

install() {
  local tool
  for tool in flock setpriv; do
    command -v "$tool" >/dev/null || die "missing program: $tool (package util-linux)"
  done
  [ ! -d "$unpacked" ] || return 0
  command -v apt-get >/dev/null ||
    die "missing program: apt-get; on a host that is neither Debian nor Ubuntu give the URL of a PostgreSQL 17 with TimescaleDB 2.19 or later instead (TEST_DATABASE_URL for tests, DATABASE_URL for the demo)"
  debian_needs
  lock_root
  if [ ! -d "$unpacked" ]; then # nobody else was faster
    rm -rf "$root"/new.*
    local new
    new=$(mktemp -d "$root/new.XXXXXX")
    chmod 755 "$new"
    echo "timescaledb.sh: unpacking PostgreSQL 17 with TimescaleDB into $unpacked (once, 250 MB)" >&2
    debian_lists "$new" "${TSDB_MIRROR:-}" "$dist"
    # shellcheck disable=SC2046,SC2086 # a list of words
    debian_download "$new" $(printf "%s/$dist " $packages)
    debian_unpack "$new" "$unpacked" "${bin#"$unpacked/"}" postgres initdb pg_ctl
    mv "$new" "$unpacked" # a folder of this name is always whole
  fi
  unlock_root
}

init() {
  # It is given to the server's user and deleted by wipe, so it must be nobody else's.
  [ -z "$(find "$home" -mindepth 1 -maxdepth 1 ! -name lock ! -name owner ! -name data ! -name password)" ] ||
    { rm -f "$home/lock" && die "$home holds other files: set TSDB_HOME to a new folder"; }
  give_to_server "$home"
  chmod 755 "$home"
  as_server test -w "$home" -a -x "$bin" 2>/dev/null ||
    die "the server's user $(server_id -un) cannot enter $home or $root: choose a TSDB_HOME and TSDB_ROOT that it can, such as below /var/tmp"
  rm -rf "$home/data" # of an init that was cut short
  # A password although only this host can connect: a superuser may run programs, and other users share 127.0.0.1.
  # It is long and random, so it needs no slow hash.
  od -An -N16 -tx1 /dev/urandom | tr -d ' \n' | as_server sh -c 'umask 077 && cat >"$1"' sh "$home/password"
  as_server "$bin/initdb" -D "$home/data" -U postgres -A scram-sha-256 --pwfile="$home/password" -c scram_iterations=1 \
    -E UTF8 --locale-provider=builtin --locale=C.UTF-8 --no-sync >/dev/null
  # Durability stays as it is in production: it is what many tests are about. TimescaleDB wants one worker for its
  # launcher and one per database; where they run out it logs so and tries again later, and nothing waits for it.
  as_server tee -a "$home/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
max_worker_processes = 32
shared_preload_libraries = 'timescaledb,pg_stat_statements'
timescaledb.telemetry_level = off
timescaledb.max_background_workers = 16
timezone = 'UTC'
log_timezone = 'UTC'
jit = off
CONF
  as_server touch "$home/ready" # the last step: without it the next start begins anew
}

# The server's process works in its data folder: so a number that has gone to another program since is told apart.
server_pid() {
  local pid
  pid=$(head -n 1 "$home/data/postmaster.pid" 2>/dev/null) &&
    as_server test "/proc/$pid/cwd" -ef "$home/data" && echo "$pid"
}

start() {
  [ -f "$home/ready" ] || init
  ! server_pid >/dev/null || return 0
  local port=${TSDB_PORT:-0} chosen= try
  [ "$port" != 0 ] || port=$(cat "$home/port" 2>/dev/null) || { chosen=1 && port=$(free_port); }
  for try in {1..50}; do
    as_server rm -f "$home/log.start"
    if as_server "$bin/pg_ctl" -D "$home/data" -s -w -t 120 -l "$home/log.start" -o "-p $port" start >/dev/null 2>&1; then
      echo "$port" >"$home/port"
      as_server mv "$home/log.start" "$home/log" # the server keeps writing to it
      return
    fi
    if grep -q 'Address already in use' "$home/log.start" 2>/dev/null; then
      [ -n "$chosen" ] || die "port $port is in use by another program: set TSDB_PORT to a free one"
      port=$(free_port)
    elif grep -q -e 'pre-existing shared memory' -e 'postmaster.pid" already exists' "$home/log.start" 2>/dev/null; then
      sleep 0.2 # a killed server's processes are still ending
    else
      break
    fi
  done
  die "the server in $home does not start: $(grep -m 1 -E 'FATAL|PANIC' "$home/log.start" 2>/dev/null || echo "see $home/log.start")"
}

# Below the ports that the kernel gives to outgoing connections, one of which could take it before the next start.
free_port() {
  local port try
  for try in {1..100}; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  die "found no free port on 127.0.0.1"
}

url() {
  [ -f "$home/port" ] || die "no server was started in $home"
  echo "postgres://postgres:$(cat "$home/password")@127.0.0.1:$(cat "$home/port")/postgres?sslmode=disable"
}

stop() {
  local signal pid try
  case $1 in
    smart) signal=TERM ;;
    fast) signal=INT ;;
    immediate) signal=QUIT ;;
    *) usage >&2; exit 2 ;;
  esac
  pid=$(server_pid) || return 0
  kill "-$signal" "$pid"
  for try in {1..1200}; do
    as_server test "/proc/$pid/cwd" -ef "$home/data" || return 0
    sleep 0.1
  done
  die "process $pid, the server in $home, did not stop within two minutes; its log is $home/log"
}

wipe() {
  [ -d "$home" ] || return 0
  stop immediate
  (cd "$home" && rm -rf data log log.start port password ready owner lock) # ours alone, should TSDB_HOME hold more
  rmdir "$home" 2>/dev/null || :
}

# A throwaway home is locked by its owner for as long as that lives; one that is not was left by an owner that was
# killed and could not clean up.
sweep() {
  local h
  for h in "$root"/run.*; do
    [ -d "$h" ] || continue
    exec 7>>"$h/owner"
    if flock -n 7; then (home=$h && wipe); fi
    exec 7>&-
  done
}

run() {
  [ $# -gt 0 ] || { usage >&2; exit 2; }
  unset TSDB_PORT
  install
  lock_root
  sweep
  home=$(mktemp -d "$root/run.XXXXXX")
  exec 7>>"$home/owner"
  flock 7
  unlock_root

  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # Nothing may interrupt the cleaning up, and it must not change the status.
  trap 'status=$?; trap "" HUP INT TERM; end_group; wipe; exit "$status"' EXIT
  start
  export TSDB_ROOT=$root TSDB_HOME=$home
  DATABASE_URL=$(url)
  export DATABASE_URL TEST_DATABASE_URL=$DATABASE_URL

  # In a group of its own the command gets each signal exactly once, from here, wherever it was sent. So it is not the
  # terminal's foreground group: it may write to the terminal, and an attempt to read from it fails instead of hanging.
  local status signalled=1
  trap '' TTIN TTOU
  set -m
  "$@" <&0 7>&- &
  group=$!
  set +m
  trap 'forward HUP' HUP
  trap 'forward INT' INT
  trap 'forward TERM' TERM
  while [ -n "$signalled" ]; do # wait returns at a signal: the command is still draining
    signalled= status=0
    wait "$group" || status=$?
  done
  exit "$status"
}

# One request to end often comes several times, from make and from whoever signalled make's whole group; for the command
# a second one would mean: at once, without draining.
forward() {
  signalled=1
  [ "$1" != "${last_signal:-}" ] || [ $((SECONDS - last_time)) -ge 2 ] || return 0
  last_signal=$1 last_time=$SECONDS
  kill "-$1" -- "-$group" 2>/dev/null || :
}

# What the command left running has no database any more: it gets ten seconds to end by itself.
group=
end_group() {
  [ -n "$group" ] || return 0
  local try
  for try in {1..100}; do
    kill -0 -- "-$group" 2>/dev/null || return 0
    [ "$try" != 1 ] || kill -TERM -- "-$group" 2>/dev/null || :
    sleep 0.1
  done
  kill -KILL -- "-$group" 2>/dev/null || :
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  install) install ;;
  bin) install && echo "$bin" ;;
  start) install && lock_home && start && url ;;
  url) url ;;
  stop) [ ! -d "$home" ] || { lock_home && stop "${1:-fast}"; } ;;
  wipe) [ ! -d "$home" ] || lock_home && wipe ;;
  uninstall)
    [ ! -d "$home" ] || { lock_home && wipe; }
    [ ! -d "$root" ] || {
      lock_root && sweep
      ! compgen -G "$root/*/data/postmaster.pid" >/dev/null || die "servers of $root still run"
      rm -rf "$root"
    }
    ;;
  run) [ "${1:-}" != -- ] || shift; run "$@" ;;
  help | -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
