#!/bin/sh
# Installs Flower in an environment of its own (build/flower), runs the federated trainings on the grid and on Flower,
# and prints both in one table. PYTHON chooses the interpreter that has the grid.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
torch="torch==$("$python" -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])')"
export FLWR_TELEMETRY_ENABLED=0
if [ ! -x build/flower/bin/flwr ]; then
  "$python" -m venv build/flower
  build/flower/bin/python -m pip install --quiet "$torch" || build/flower/bin/python -m pip install --quiet torch
  build/flower/bin/python -m pip install --quiet flwr scikit-learn
fi
exec "$python" -m benchmarks federated_jobs "$@"
