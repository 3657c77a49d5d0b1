#!/usr/bin/env bash
# Install the wheel and what it needs into /opt/grid/env: packages.sh WHEELS TORCH. TORCH is
#   none   no torch: the bare package, a headless training device
#   base   the torch of the base image stays as it is (NVIDIA's build on a Jetson), and its NumPy with it
#   pypi   what the package index gives: with CUDA, some gigabytes
#   cpu    the build for processors
#   torch==VERSION   that release of the package index: on arm64 those before 2.10 are for processors
#   else   the address of a package index that has torch
set -euo pipefail
wheels=$1 torch=$2
env=/opt/grid/env
wheel=$(echo "$wheels"/grid_jupyter-*.whl)
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

versions_of_base() {
  python3 - <<'END'
from importlib.metadata import PackageNotFoundError, version
for name in ("torch", "numpy"):
    try:
        print(f"{name}=={version(name)}")
    except PackageNotFoundError:
        pass
END
}

case $torch in
none)
  python3 -m venv "$env"
  "$env/bin/pip" install --quiet "$wheel"
  ;;
base)
  versions_of_base >/tmp/of-the-base.txt
  grep -q '^torch==' /tmp/of-the-base.txt || {
    echo "TORCH=base, but the base image has no torch: take one that has, or TORCH=cpu" >&2
    exit 1
  }
  python3 -m venv --system-site-packages "$env"
  # NVIDIA's images pin all that they were made with, too old for us, in what this variable names; and they bring a
  # JupyterLab, whose commands know nothing of this environment: it gets one of its own.
  export PIP_CONSTRAINT=/tmp/of-the-base.txt
  "$env/bin/pip" install --quiet --ignore-installed jupyterlab
  "$env/bin/pip" install --quiet "${wheel}[lab]"
  rm /tmp/of-the-base.txt
  ;;
*)
  case $torch in
  pypi) what=(torch) ;;
  cpu) what=(--index-url https://download.pytorch.org/whl/cpu torch) ;;
  torch==*) what=("$torch") ;;
  *) what=(--index-url "$torch" torch) ;;
  esac
  python3 -m venv "$env"
  "$env/bin/pip" install --quiet "${what[@]}"
  "$env/bin/pip" install --quiet "${wheel}[lab]"
  ;;
esac
