#!/usr/bin/env bash
# What the container runs: start.sh [notebook | node | network | device …], or any other command. Without a word, $GRID_ROLE.
#
#   /var/lib/grid  the state of Node or Network, kept over restarts
#   /run/grid      cert.pem, key.pem, ca.pem and invite, which the Network, or whoever runs this, put there
#   /run/people    credentials that this Node or Network gives to its people
#   /run/members   the other ends of these: in the Network's container what each member gets of it, in the
#                  notebook's what the Nodes gave to its user
set -euo pipefail
here=$(dirname "$0")
host=$(hostname)
name=${GRID_NAME:-$host}
export GRID_JUPYTER_HOME=${GRID_JUPYTER_HOME:-/var/lib/grid}
secrets=${GRID_SECRETS:-/run/grid}
if [ -r "$secrets/ca.pem" ]; then export SSL_CERT_FILE=$secrets/ca.pem; fi

# Beyond this container only who has a certificate: credentials and values never cross a network in the clear.
serving=()
if [ -r "$secrets/cert.pem" ]; then
  serving=(--host 0.0.0.0 --certfile "$secrets/cert.pem" --keyfile "$secrets/key.pem")
fi

if [ "$#" -eq 0 ]; then set -- "${GRID_ROLE:-notebook}"; fi
role=$1
case $role in
network)
  shift
  own=$GRID_JUPYTER_HOME/certificates
  state=$GRID_JUPYTER_HOME/network
  "$here/certificates.sh" "$own" "$host"
  { "$here/members.sh" "$own" "$state" && "$here/people.sh" "$state" && touch /run/members/.ready; } &
  exec jupyter-grid network --name "$name" --host 0.0.0.0 --port 5000 --state "$state" \
    --address "https://$host:5000" --certfile "$own/$host/cert.pem" --keyfile "$own/$host/key.pem" "$@"
  ;;
node)
  shift
  joining=()
  if [ -n "${GRID_NETWORK:-}" ]; then joining+=(--network "$GRID_NETWORK"); fi
  if [ -r "$secrets/invite" ]; then
    GRID_JUPYTER_INVITE=$(cat "$secrets/invite")
    export GRID_JUPYTER_INVITE
  fi
  if [ -r "$secrets/cert.pem" ]; then serving+=(--address "https://$host:3000"); fi
  state=$GRID_JUPYTER_HOME/nodes/$name
  "$here/people.sh" "$state" &
  exec jupyter-grid node --name "$name" --port 3000 --state "$state" "${serving[@]}" "${joining[@]}" "$@"
  ;;
notebook)
  shift
  if [ -n "${JUPYTER_TOKEN_FILE:-}" ]; then
    JUPYTER_TOKEN=$(cat "$JUPYTER_TOKEN_FILE")
  elif [ -z "${JUPYTER_TOKEN:-}" ]; then
    kept=$GRID_JUPYTER_HOME/jupyter-token
    if [ ! -s "$kept" ]; then
      (umask 077 && python -c 'import secrets; print(secrets.token_hex(24))' >"$kept")
      echo "JupyterLab: http://localhost:${GRID_PORT:-8888}/lab?token=$(cat "$kept")"
      echo "This is said once; the token stays in $kept."
    fi
    JUPYTER_TOKEN=$(cat "$kept")
  fi
  export JUPYTER_TOKEN
  if [ -d /opt/grid/tutorials ]; then cp -rn /opt/grid/tutorials . || true; fi
  python "$here/introduce.py" /run/members
  options=("--GridExtension.node_name=$name")
  if [ "${GRID_OWN_NODE:-yes}" = no ]; then options+=(--GridExtension.enabled=False); fi
  if [ -n "${GRID_NETWORK:-}" ]; then options+=("--GridExtension.network_url=$GRID_NETWORK"); fi
  exec jupyter lab --ip=0.0.0.0 --port=8888 --no-browser "${options[@]}" "$@"
  ;;
device)
  shift
  exec jupyter-grid device "$@"
  ;;
*)
  exec "$@"
  ;;
esac
