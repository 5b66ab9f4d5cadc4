# Sourced by the other scripts: makes or reuses the virtual environment in .venv and installs ftkit with the extras in $EXTRAS,
# and the packages in $ALONE without what they depend on.
# Environment: FTKIT_VENV (default .venv), PYTHON (default: the first of python3.11, 3.12, 3.13, 3.10 and python3 that is there and new enough).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${FTKIT_VENV:-.venv}"
TORCH_VERSION="$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)"

say() { printf '==> %s\n' "$*"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.10 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "ftkit needs Python 3.10 to 3.13 (set PYTHON to choose one)" >&2
  return 1
}

install_torch() {
  if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    say "torch is already installed"
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    say "installing torch $TORCH_VERSION for the GPU"
    "$VENV/bin/python" -m pip install --quiet "torch==$TORCH_VERSION"
  else
    # The CPU build saves gigabytes of CUDA packages: a local wheel first, then PyTorch's own index, then whatever PyPI has.
    say "installing torch $TORCH_VERSION for the CPU"
    "$VENV/bin/python" -m pip install --quiet "torch==$TORCH_VERSION+cpu" 2>/dev/null ||
      "$VENV/bin/python" -m pip install --quiet --retries 1 --timeout 15 "torch==$TORCH_VERSION+cpu" \
        --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
      "$VENV/bin/python" -m pip install --quiet "torch==$TORCH_VERSION"
  fi
}

setup() {
  local python stamp
  stamp="$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum) $EXTRAS ${ALONE:-}"
  if [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.ftkit-setup" 2>/dev/null)" = "$stamp" ]; then
    say "using the virtual environment in $VENV"
    return
  fi
  python="$(find_python)"
  say "making a virtual environment in $VENV with $("$python" --version)"
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  install_torch
  say "installing ftkit with its extras: $EXTRAS"
  "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[$EXTRAS]"
  if [ -n "${ALONE:-}" ]; then
    say "installing $ALONE"
    "$VENV/bin/python" -m pip install --quiet --no-deps $ALONE
  fi
  echo "$stamp" >"$VENV/.ftkit-setup"
}
