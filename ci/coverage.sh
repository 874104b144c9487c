#!/usr/bin/env bash
# Lines and branches of the package that the tests run, those of the compiled modules included.
#
#   PYTHON=.venv/bin/python ci/coverage.sh [TESTS...]
#
# The tests run in build/coverage, a copy whose compiled modules tell coverage of each line. Each file
# of tests is a process of its own, as a test that hangs in slow modules costs only its own file then.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=build/coverage
mkdir -p "$copy"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy"
cd "$copy"
export PYTHONPATH=$PWD # Else processes that tests start import the package that is installed.
export SPOP_TEST_LEAK_ROUNDS=0 # The error paths run. What they leave behind is not measured.
SPOP_LINETRACE=1 "$PYTHON" setup.py -q build_ext --inplace
"$PYTHON" -m coverage erase

# These look at the project's files, not at what the package does.
skipped='test_(distribution|docs.*|figures|memcheck|site|typing|wheel)[.]py'
[ $# -gt 0 ] || mapfile -t files < <(find tests -name 'test_*.py' | grep -vE "$skipped" | sort)
# These raise in another thread, which may run a function of coverage's then and not end.
untraced='whose_loop_dies|thread_that_dies|thread_died_of|server_failed_of'
failed=()
for tests in "${@:-${files[@]}}"; do
    for pure in '' 1; do
        SPOP_PURE=$pure timeout --signal=INT --kill-after=60 "${TIMEOUT:-300}" \
            "$PYTHON" -m coverage run -m pytest -q -p no:cacheprovider \
            --hypothesis-profile coverage -k "not ${untraced//|/ and not }" "$tests" \
            >"$(basename "$tests").txt" 2>&1 ||
            [ $? = 5 ] || failed+=("$tests${pure:+ (in Python)}")
    done
done
"$PYTHON" ci/coverage_sift.py
"$PYTHON" -m coverage combine -q
"$PYTHON" -m coverage html -q -d html
"$PYTHON" ci/coverage_table.py
"$PYTHON" ci/uncovered.py
echo "line by line: $copy/html/index.html"
# Traced modules are slow: what is measured in time may fail here, and runs in `make test`.
[ ${#failed[@]} = 0 ] || printf 'failed or timed out, with tracing: %s\n' "${failed[@]}"
