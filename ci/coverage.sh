#!/usr/bin/env bash
# Lines and branches of the package that the tests run, those of the compiled modules included.
#
#   PYTHON=.venv/bin/python ci/coverage.sh [TESTS...]
#
# The tests run in build/coverage, a copy whose compiled modules tell coverage of each line. Each file
# of tests is a process of its own, as a test that hangs in slow modules costs only its own file then.
# JOBS of them run at the same time, each for TIMEOUT seconds at most.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=build/coverage
rm -rf "$copy/log" "$copy/tests"
[ ! -d "$copy/spop" ] || find "$copy/spop" -name "*.py" -delete # Else one that is no more is counted, as not run.
mkdir -p "$copy/log"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy"
cd "$copy"
export PYTHONPATH=$PWD # Else processes that tests start import the package that is installed.
export SPOP_TEST_LEAK_ROUNDS=0 # The error paths run. What they leave behind is not measured.
export SPOP_TEST_SAMPLE=1 # Of HAProxy's keywords: all, for each version, take an hour in traced modules.
SPOP_LINETRACE=1 "$PYTHON" setup.py -q build_ext --inplace
"$PYTHON" -m coverage erase

# These look at the project's files, not at what the package does.
skipped='test_(distribution|docs|docs_codec|figures|site|typing|wheel)[.]py'
# These measure instructions and memory; in sub-interpreters coverage's tracer does not work.
skipped+='|test_(cost|memcheck|interpreters)[.]py'
# These raise in another thread, which may run a function of coverage's then and not end.
export UNTRACED='not whose_loop_dies and not thread_that_dies and not thread_died_of and not server_failed_of'

run() { # run PURE TESTS
    local log status=0
    log=log/$(tr / . <<<"$2")${1:+.pure}
    SPOP_PURE=$1 timeout --signal=INT --kill-after=60 "${TIMEOUT:-600}" \
        "$PYTHON" -m coverage run -m pytest -q -p no:cacheprovider \
        --hypothesis-profile coverage -k "$UNTRACED" "$2" >"$log" 2>&1 || status=$?
    echo "$(date +%T) ${1:+SPOP_PURE=1 }$2: $(tail -1 "$log")"
    # 5: each of its tests is left out.
    [ $status = 0 ] || [ $status = 5 ] || echo "$2${1:+ (in Python)}: status $status" >>log/failed
}
export -f run

chosen() { # chosen PURE TESTS...: the files that pytest runs
    SPOP_PURE=$1 "$PYTHON" -m pytest -q -p no:cacheprovider --collect-only "${@:2}" |
        sed -n 's/::.*//p' | uniq | grep -vE "$skipped" | awk -v pure="$1" '{print pure; print $0}'
}

touch log/failed
{ chosen '' "$@"; chosen 1 "$@"; } |
    tr '\n' '\0' | xargs -0 -n 2 -P "${JOBS:-$(nproc)}" bash -c 'run "$@"' run
"$PYTHON" ci/coverage_sift.py
"$PYTHON" -m coverage combine -q
"$PYTHON" -m coverage html -q -d html
"$PYTHON" ci/coverage_table.py
"$PYTHON" ci/uncovered.py
echo "line by line: $copy/html/index.html"
# Traced modules are slow: what is measured in time may fail here, and runs in `make test`.
sed 's/^/failed or timed out, with tracing: /' log/failed
