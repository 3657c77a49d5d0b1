#!/usr/bin/env bash
# Build the wheel, with the compiled panel in it: wheel.sh SOURCE FOLDER. Node.js comes as a wheel where there is none.
set -euo pipefail
python3 -m pip wheel --quiet --no-deps --wheel-dir "$2" "$1"
