#!/usr/bin/env bash
# prometheus and promtool beside the interpreter, for the tests that ask a real Prometheus. Taken out of Debian's package
# without installing it: an installed one starts a service.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/${VENV:-.venv}/bin

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

for name in prometheus promtool; do
    if [ -x "$bin/$name" ]; then continue; fi
    if found=$(command -v "$name"); then ln -s "$found" "$bin/$name"; continue; fi
    command -v apt-get >/dev/null || die "no $name here; install Prometheus, so that prometheus and promtool are on PATH"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    [ "$(id -u)" != 0 ] || apt-get update -qq >/dev/null 2>&1 || true # an older list of packages may do
    (cd "$folder" && apt-get download prometheus >/dev/null 2>&1) || die "apt-get cannot download prometheus"
    dpkg-deb -x "$folder"/prometheus_*.deb "$folder/unpacked"
    install "$folder/unpacked/usr/bin/prometheus" "$folder/unpacked/usr/bin/promtool" "$bin/"
done
