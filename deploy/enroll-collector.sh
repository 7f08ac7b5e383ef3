#!/bin/sh
# Enrols the collector of docker-compose.yml, once: makes a token as an
# operator would and spends it at once. An enrolled collector stays what it is.
#
# usage: enroll-collector.sh URL NAME
#   URL   of authsvc's listener for users
#   NAME  of the collector
set -eu
url=$1 name=$2
state=/var/lib/pganalytics/collector

if [ -s "$state/identity.json" ]; then
  echo "collector is enrolled already"
  exit 0
fi
token=$(mktemp)
trap 'rm -f "$token"' EXIT
answer=$(pganalytics collectors enroll-token --name "$name" --url "$url" \
  --server-ca /var/lib/pganalytics/pki-public/server-ca.crt \
  --database-url-file /run/secrets/database_url \
  --token-file "$token" --output json)
fingerprint=$(printf '%s' "$answer" | sed -n 's/.*"ca_fingerprint":"\([^"]*\)".*/\1/p')
collector enroll --url "$url" --ca-fingerprint "$fingerprint" \
  --token-file "$token" --name "$name" --state-dir "$state"
