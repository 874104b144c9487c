"""Unpacks the ``haproxy-*.xz`` binaries of a folder; prints their paths joined by ``:``.

python3 ci/unpack_haproxy.py SOURCE TARGET
"""

import lzma
import sys
from pathlib import Path


def unpack(source: Path, target: Path) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    binaries = []
    for packed in sorted(source.glob("haproxy-*.xz")):
        binary = target.resolve() / packed.stem
        if not binary.exists():
            binary.write_bytes(lzma.decompress(packed.read_bytes()))
            binary.chmod(0o755)
        binaries.append(binary)
    return binaries


if __name__ == "__main__":
    print(":".join(map(str, unpack(Path(sys.argv[1]), Path(sys.argv[2])))))
