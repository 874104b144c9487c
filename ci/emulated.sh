#!/usr/bin/env bash
# Tries a wheel for aarch64 on another processor, with Debian's Python for aarch64, under qemu-user.
#
#   ci/emulated.sh WHEEL             needs Debian, its qemu-user-static, and the wheel for its Python
#
# Debian's packages are unpacked in build/aarch64; nothing of them is installed.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
root=$source/build/aarch64
version=$(echo "$1" | sed -E 's/.*-cp3([0-9]+)-.*/3.\1/')

apt() {
    mkdir -p "$root"/apt/{state,cache}/partial
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Debug::NoLocking=1 \
        -o Dir::State="$root/apt/state" -o Dir::State::status=/dev/null -o Dir::Cache="$root/apt/cache" "$@"
}
if [ ! -x "$root/usr/bin/python$version" ]; then
    apt update
    apt install --download-only --no-install-recommends --yes "python$version"
    for package in "$root"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi

export PYTHONPATH=$root/site
rm -rf "$PYTHONPATH"
python3 -m pip install -q --target "$PYTHONPATH" --only-binary :all: --implementation cp \
    --python-version "$version" --platform manylinux_2_28_aarch64 "$1[cli]"
export SPOP_PYTHON="qemu-aarch64-static -L $root $root/usr/bin/python$version"
$SPOP_PYTHON "$source/ci/smoke.py" c
