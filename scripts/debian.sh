# Sourced by the scripts that unpack Debian's packages into folders of their own and run programs there with the
# packages' own libc: nothing is installed on the host. They define die.
# shellcheck shell=bash

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

debian_needs() { # MORE-PROGRAMS...
  local tool
  for tool in apt-get dpkg-deb "$@"; do
    command -v "$tool" >/dev/null || die "missing program: $tool"
  done
  [ -e /usr/share/zoneinfo/UTC ] || die "missing package: tzdata"
  [ -f "$keyring" ] || die "missing package: debian-archive-keyring"
}

debian_lists() { # DIR MIRROR DIST...: fetches the lists of packages into DIR/apt; an empty MIRROR is the host's own
  local apt=$1/apt dist ok=
  mkdir -p "$1/debs" "$apt/lists" "$apt/cache/archives/partial"
  cat >"$apt/conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list"; Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$apt/lists"; Dir::Cache "$apt/cache";
APT::Sandbox::User ""; APT::Install-Recommends "false"; APT::Update::Error-Mode "any";
Acquire::Languages "none"; Acquire::Retries "3"; Acquire::http::Timeout "30"; Acquire::https::Timeout "30";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
#clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success; #clear DPkg::Post-Invoke;
CONF
  for mirror in ${2:-$(debian_mirrors)}; do
    for dist in "${@:3}"; do echo "deb [signed-by=$keyring] $mirror $dist main"; done >"$apt/sources.list"
    apt-get -qq -c "$apt/conf" update >"$apt/log" 2>&1 && ok=1 && break
  done
  [ -n "$ok" ] || debian_failed "$1" "${*:3}"
}

# The host's own mirrors first (the nearest, and the ones that its proxy allows); some are not Debian's at all.
debian_mirrors() {
  apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 2>/dev/null |
    awk '$1 == "main" && $2 ~ "/debian/*$" && !seen[$2]++ { print $2 }' || :
}

debian_download() { # DIR PACKAGE...: into DIR/debs
  (cd "$1/debs" && apt-get -qq -c "$1/apt/conf" download "${@:2}") >"$1/apt/log" 2>&1 || debian_failed "$1" "${*:2}"
}

debian_failed() { # DIR WHAT
  die "cannot fetch Debian's $2 from ${mirror:-a mirror, for this host names none: set one, see help}; is there a network? $(grep '^E:' "$1/apt/log" | head -n 1)"
}

# DIR FINAL BIN PROGRAM...: unpacks DIR/debs into DIR, which will be moved to FINAL, without what a server does not
# need, and makes the programs in DIR/BIN run by the private loader and libc.
debian_unpack() {
  local dir=$1 final=$2 bin=$3 deb loader libs program
  for deb in "$dir"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir" --no-same-owner --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
      --exclude='./usr/share/locale/*' --exclude='*/bitcode/*' --exclude='*llvmjit*' --exclude='*/gconv/*' --exclude='*/timescaledb--*--*.sql' ||
      die "cannot unpack ${deb##*/} into $dir: is the disk full?"
  done
  loader=$(find "$dir" -type f -name 'ld-linux-*.so.*' | head -n 1)
  libs=$(dirname "$(find "$dir" -type f -name libc.so.6 | head -n 1)")
  for program in "${@:4}"; do
    mv "$dir/$bin/$program" "$dir/$bin/$program.bin"
    printf '#!/bin/sh\nexec "%s" --argv0 "%s" --library-path "%s" "%s" "$@"\n' \
      "$final${loader#"$dir"}" "$final/$bin/$program" "$final${libs#"$dir"}" "$final/$bin/$program.bin" >"$dir/$bin/$program"
    chmod 755 "$dir/$bin/$program"
  done
  rm -rf "$dir/apt" "$dir/debs"
}
