#!/usr/bin/env bash
# Cross-builds a wheel for aarch64 with Debian's headers, and tries it with Debian's Python for it.
#
#   ci/emulated.sh                   needs Debian, its python3 and qemu-user-static
#
# Debian's packages for aarch64 are unpacked in build/aarch64; nothing of them is installed.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
root=$source/build/aarch64 python=/usr/bin/python3
version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')

apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$root/apt/state" \
        -o Dir::State::status=/dev/null -o Dir::Cache="$root/apt/cache" -o Debug::NoLocking=1 "$@"
}
if [ ! -e "$root/include" ]; then
    mkdir -p "$root"/apt/{state,cache}/partial
    apt update
    apt install --download-only --no-install-recommends --yes "python$version" "libpython$version-dev"
    for package in "$root"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    mkdir "$root/include" # Without the C library's headers, as the compiler has its own.
    ln -s "$root/usr/include/aarch64-linux-gnu" "$root/include"
fi
CFLAGS=-I$root/include "$source/ci/cross_wheel.sh" aarch64 gnu "$python"

export PYTHONPATH=$root/site
rm -rf "$PYTHONPATH" "$root/venv"
"$python" -m venv "$root/venv"
wheel=("$source"/dist/*-"cp${version/./}"-*aarch64.whl)
"$root/venv/bin/pip" install -q --target "$PYTHONPATH" --only-binary :all: --implementation cp \
    --python-version "$version" --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 "${wheel[0]}[cli]"
cd "$root" # Else the package of the checkout is found.
unset PYTHONDONTWRITEBYTECODE # An emulated compiler takes its time.
export SPOP_PYTHON="qemu-aarch64-static -L $root $root/usr/bin/python$version"
$SPOP_PYTHON "$source/ci/smoke.py" c
