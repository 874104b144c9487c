"""The converters that HAProxy has, by topic."""

from spop.engine.samples.converters import encodings, hashes, maps, numbers, strings, times

__all__ = ["encodings", "hashes", "maps", "numbers", "strings", "times"]
