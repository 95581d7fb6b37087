#!/usr/bin/env bash
# A headless Chromium and its driver, for the tests that open the rollout viewer. From Debian's packages, as root; where they
# cannot be had the tests are skipped, and this says so.
set -euo pipefail

missing() { for name in chromium chromedriver; do command -v "$name" >/dev/null || return 0; done; return 1; }
skip() { printf 'note: %s; the browser tests will be skipped\n' "$*" >&2; exit 0; }

missing || exit 0
command -v apt-get >/dev/null || skip "no chromium and chromedriver on PATH, and no apt-get to install them"
[ "$(id -u)" = 0 ] || skip "no chromium and chromedriver on PATH; as root: apt-get install chromium chromium-driver"
apt-get update -qq >/dev/null 2>&1 || true # an older list of packages may do
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null 2>&1 \
    || skip "apt-get cannot install chromium and chromium-driver"
