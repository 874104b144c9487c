#!/usr/bin/env bash
# Builds a wheel for another processor or C library in dist/, with a C cross compiler from PyPI.
#
#   ci/cross_wheel.sh PROCESSOR LIBRARY [PYTHON]     aarch64 gnu, x86_64 musl, aarch64 musl
#
# For the version of PYTHON, python3 by default, whose headers it takes. Nothing of it can be run
# here: qemu-user runs the one for gnu with another system's Python. Releases are cibuildwheel's job.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
processor=$1 library=$2 python=${3:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $library in
gnu) target=$processor-linux-gnu.2.28 platform=manylinux_2_28_$processor ;;
musl) target=$processor-linux-musl platform=musllinux_1_2_$processor ;;
esac
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'setuptools>=77' 'Cython>=3.3' wheel ziglang
git -C "$source" ls-files -z | (cd "$source" && xargs -0 cp --parents -t "$work" 2>/dev/null) || true
tag=$("$python" -c 'import sys; print(f"{sys.version_info[0]}{sys.version_info[1]}")')

cd "$work"
export CC="$work/venv/bin/python -m ziglang cc -target $target" AR="$work/venv/bin/python -m ziglang ar"
export LDSHARED="$CC -shared" _PYTHON_HOST_PLATFORM=linux-$processor LDFLAGS=
export SETUPTOOLS_EXT_SUFFIX=.cpython-$tag-$processor-linux-$library.so
venv/bin/python setup.py -q bdist_wheel --dist-dir "$work/dist"
venv/bin/python -m wheel tags --remove --platform-tag "$platform" "$work"/dist/*.whl
mkdir -p "$source/dist"
cp "$work"/dist/*.whl "$source/dist"
"$python" "$source/ci/wheel_contents.py" "$work"/dist/*.whl
