#!/usr/bin/env bash
# Debian and Ubuntu ship Python's venv module as a package of its own.
set -euo pipefail
command -v apt-get >/dev/null || { echo "python3 -m venv does not work here" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
