#!/bin/sh
# Makes the secrets of docker-compose.yml in deploy/secrets: a random password
# for each login. What is there already stays.
set -eu
umask 077
cd "$(dirname "$0")"

# The directory keeps others out. The files in it are open to all, because a
# container sees its secrets with the modes that they have here, and no
# container runs as their owner.
mkdir -p secrets
chmod 0700 secrets
cd secrets

# It begins with a letter, for NATS reads what begins with a digit as a number,
# and has none that a URL would have to escape.
random() {
  printf 'p'
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

write() { # NAME CONTENT
  [ ! -s "$1" ] || return 0
  printf '%s\n' "$2" >"$1.new"
  chmod 0444 "$1.new"
  mv "$1.new" "$1"
}

for login in postgres database collector_database nats_init nats_authsvc nats_gateway nats_ingester; do
  write "${login}_password" "$(random)"
done
write database_url "postgres://pganalytics:$(cat database_password)@timescaledb:5432/metrics?sslmode=disable"
write collector_conninfo "postgres://pganalytics_collector:$(cat collector_database_password)@timescaledb:5432/metrics?sslmode=disable"
write nats.env "NATS_INIT_PASSWORD=$(cat nats_init_password)
NATS_AUTHSVC_PASSWORD=$(cat nats_authsvc_password)
NATS_GATEWAY_PASSWORD=$(cat nats_gateway_password)
NATS_INGESTER_PASSWORD=$(cat nats_ingester_password)"
echo "secrets are in $(pwd)"
