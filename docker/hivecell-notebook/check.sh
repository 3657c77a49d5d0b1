#!/usr/bin/env bash
# Stop the build where what was installed would not work: check.sh TORCH.
set -euo pipefail
torch=$1
export PATH=/opt/grid/env/bin:$PATH

jupyter-grid --version
if [ "$torch" = none ]; then
  if python -c 'import torch' 2>/dev/null; then
    echo "torch is there, but was not asked for" >&2
    exit 1
  fi
  jupyter-grid device --help >/dev/null
  exit 0
fi
jupyter labextension list 2>&1 | grep -F grid-jupyter | grep -F OK
jupyter server extension list 2>&1 | grep -F grid_jupyter | grep -F OK
python -c 'import platform, torch; print("torch", torch.__version__, "on", platform.machine(), "with CUDA", torch.version.cuda)'
