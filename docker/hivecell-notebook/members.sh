#!/usr/bin/env bash
# Give its members what they need to join: members.sh CERTIFICATES STATE. Into /run/members/NAME go certificate and key
# of each Node in $GRID_MEMBERS and an invite; of each in $GRID_CLIENTS only what it trusts. Each of these folders is a
# volume that only this container and that member see. What was handed out stays.
set -euo pipefail
umask 077
own=$1 state=$2
here=$(dirname "$0")
read -ra members <<<"${GRID_MEMBERS:-}"
read -ra clients <<<"${GRID_CLIENTS:-}"

hand_out() { # member, file: it is there whole, or not at all
  mkdir -p "/run/members/$1"
  install -m 0400 "$2" "/run/members/$1/.new"
  mv "/run/members/$1/.new" "/run/members/$1/$(basename "$2")"
}

for client in "${clients[@]}"; do
  hand_out "$client" "$own/ca.pem"
done
for member in "${members[@]}"; do
  host=${member,,}
  "$here/certificates.sh" "$own" "$host"
  for file in "$own/$host/key.pem" "$own/$host/cert.pem" "$own/ca.pem"; do
    hand_out "$member" "$file"
  done
  if [ -s "/run/members/$member/invite" ]; then continue; fi
  "$here/ask.sh" invite --state "$state" --role Node --for "$member" --expires 30d --json >"$own/answer"
  python -c 'import json, sys; print(json.load(sys.stdin)["invite"])' <"$own/answer" >"$own/invite"
  hand_out "$member" "$own/invite"
  rm "$own/answer" "$own/invite"
done
