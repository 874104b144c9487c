#!/usr/bin/env bash
# Lines and branches of the package that the tests run, those of the compiled modules included.
#
#   PYTHON=.venv/bin/python ci/coverage.sh [TESTS...]
#
# The tests run in build/coverage, a copy whose compiled modules tell coverage of each line.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=build/coverage
mkdir -p "$copy"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy"
cd "$copy"
SPOP_LINETRACE=1 "$PYTHON" setup.py -q build_ext --inplace
"$PYTHON" -m coverage erase
SPOP_PURE='' "$PYTHON" -m coverage run -m pytest -q "$@" || failed=$?
SPOP_PURE=1 "$PYTHON" -m coverage run -m pytest -q "$@" || failed=$?
"$PYTHON" -m coverage combine -q
"$PYTHON" -m coverage report --skip-covered --sort=miss
"$PYTHON" -m coverage html -q -d html
echo "line by line: $copy/html/index.html"
exit "${failed:-0}"
