#!/usr/bin/env bash
# What the system must have, and the user that everything runs as: system.sh UID. Run as root, on Debian or Ubuntu.
set -euo pipefail
uid=$1
export DEBIAN_FRONTEND=noninteractive

packages=(bubblewrap ca-certificates openssl tini)
if ! command -v python3 >/dev/null; then
  packages+=(python3)
fi
if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
  packages+=(python3-venv)
fi
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${packages[@]}"
apt-get clean
rm -rf /var/lib/apt/lists/*

useradd --uid "$uid" --user-group --create-home --shell /bin/bash grid
# On a Jetson the GPU's device files belong to these groups.
for group in video render; do
  if getent group "$group" >/dev/null; then
    usermod --append --groups "$group" grid
  fi
done
# Volumes that are empty take over whom these folders belong to.
install -d -o grid -g grid -m 0700 /var/lib/grid
install -d -o grid -g grid /home/grid/work
install -d -o grid -g grid -m 0700 /run/grid /run/people /run/members /run/members/{Network,Alice,Bob,Bill,James,Notebook}
