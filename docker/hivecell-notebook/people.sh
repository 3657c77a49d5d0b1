#!/usr/bin/env bash
# Give the people in $GRID_PEOPLE ("Alice:Owner Ana:User") a credential here, once, in /run/people: people.sh STATE
set -euo pipefail
umask 077
state=$1
here=$(dirname "$0")
read -ra people <<<"${GRID_PEOPLE:-}"
for one in "${people[@]}"; do
  user=${one%%:*} role=${one##*:}
  if [ -s "/run/people/$user" ]; then continue; fi
  "$here/ask.sh" token issue "$user" --state "$state" --role "$role" --json >/run/people/.new
  mv /run/people/.new "/run/people/$user"
done
