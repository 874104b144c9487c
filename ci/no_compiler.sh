#!/usr/bin/env bash
# Checks that the package installs in each of its forms, and which codec it then has:
# with a compiler, without one, and with SPOP_PURE=1.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

expect() { # expect IMPLEMENTATION [VARIABLE=VALUE...]
    local wanted=$1 found
    shift
    rm -rf "$work/venv" "$work/source"
    git -C "$source" ls-files -z | (cd "$source" && xargs -0 cp --parents -t "$(mkdir -p "$work/source" && echo "$work/source")")
    "${PYTHON:-python3}" -m venv "$work/venv"
    env "$@" "$work/venv/bin/pip" install -q "$work/source"
    found=$(cd "$work" && venv/bin/python -c 'import spop.codec; print(spop.codec.IMPLEMENTATION)')
    echo "${*:-with a compiler}: $found"
    [ "$found" = "$wanted" ]
}

command -v cc >/dev/null && expect c
expect python CC=false
expect python SPOP_PURE=1
