#!/usr/bin/env bash
# A certificate for each name, all by one authority of this grid's own: certificates.sh FOLDER NAME…. What is there stays.
set -euo pipefail
umask 077
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
if [ ! -s ca.pem ]; then
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj '/CN=grid' \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
    -keyout ca.key -out ca.pem 2>/dev/null
fi
for name in "$@"; do
  if [ -s "$name/cert.pem" ]; then continue; fi
  mkdir -p "$name"
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name/key.pem" -out "$name/request.pem" 2>/dev/null
  openssl x509 -req -in "$name/request.pem" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
    -extfile <(printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\n' "$name") -out "$name/new.pem" 2>/dev/null
  rm "$name/request.pem"
  mv "$name/new.pem" "$name/cert.pem"
done
