"""Converters that hash: digests, checksums, and the hashes of HAProxy's load balancing."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

from spop.engine.samples.registry import converter
from spop.engine.samples.xxhash64 import xxhash64

_32_BITS = 0xFFFFFFFF


def avalanche(value: int) -> int:
    """Spread a 32-bit hash over all of its bits, with one of Bob Jenkins' integer hashes."""
    value = value + 0x7ED55D16 + (value << 12) & _32_BITS
    value = value ^ 0xC761C23C ^ value >> 19
    value = value + 0x165667B1 + (value << 5) & _32_BITS
    value = (value + 0xD3A2646C ^ value << 9) & _32_BITS
    value = value + 0xFD7046C5 + (value << 3) & _32_BITS
    value = value ^ 0xB55A4F09 ^ value >> 16
    return value * 3221225473 & _32_BITS


def sdbm_hash(data: bytes) -> int:
    value = 0
    for byte in data:
        value = byte + (value << 6) + (value << 16) - value & _32_BITS
    return value


def djb2_hash(data: bytes) -> int:
    value = 5381
    for byte in data:
        value = value * 33 + byte & _32_BITS
    return value


def _castagnoli(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = [_castagnoli(byte) for byte in range(256)]


def crc32c_hash(data: bytes) -> int:
    value = _32_BITS
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ _32_BITS


def _register(name: str, compute: Callable[[bytes], int]) -> None:
    def checksum(value: bytes, avalanched: int = 0) -> int:
        result = compute(value)
        return avalanche(result) if avalanched else result

    converter(name)(checksum)


_register("crc32", zlib.crc32)
_register("crc32c", crc32c_hash)
_register("djb2", djb2_hash)
_register("sdbm", sdbm_hash)


@converter("xxh64")
def xxh64(value: bytes, seed: int = 0) -> int:
    digest = xxhash64(value, seed & (1 << 64) - 1)
    return digest - (1 << 64) if digest >> 63 else digest


@converter("sha1")
def sha1(value: bytes) -> bytes:
    return hashlib.sha1(value).digest()


@converter("sha2")
def sha2(bits: int = 256) -> Callable[[bytes], bytes]:
    if bits not in (224, 256, 384, 512):
        raise ValueError("SHA-2 has 224, 256, 384 or 512 bits")
    return digest(f"sha{bits}")


@converter("digest")
def digest(algorithm: str) -> Callable[[bytes], bytes]:
    if algorithm.lower() not in hashlib.algorithms_available:
        raise ValueError(f"'{algorithm}' is no digest algorithm")
    return lambda value: hashlib.new(algorithm, value).digest()


@converter("md5")
def md5(value: bytes) -> bytes:
    """Only here: HAProxy has ``digest(md5)``."""
    return hashlib.md5(value).digest()
