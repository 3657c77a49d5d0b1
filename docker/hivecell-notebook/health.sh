#!/usr/bin/env bash
# Whether what this container is for answers, and has handed out what others wait for.
set -euo pipefail
secrets=${GRID_SECRETS:-/run/grid}
case ${GRID_ROLE:-notebook} in
network)
  test -e /run/members/.ready
  export SSL_CERT_FILE=$GRID_JUPYTER_HOME/certificates/ca.pem
  page=https://127.0.0.1:5000/status
  ;;
node)
  page=http://127.0.0.1:3000/data-centric/status
  if [ -r "$secrets/ca.pem" ]; then
    export SSL_CERT_FILE=$secrets/ca.pem
    page=https://127.0.0.1:3000/data-centric/status
  fi
  read -ra people <<<"${GRID_PEOPLE:-}"
  for one in "${people[@]}"; do test -s "/run/people/${one%%:*}"; done
  ;;
notebook) page=http://127.0.0.1:8888/api ;;
*) exit 0 ;;
esac
python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=8).close()' "$page"
