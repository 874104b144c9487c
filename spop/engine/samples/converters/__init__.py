"""The converters of HAProxy, by topic (section 7.3.1 of its manual)."""

from spop.engine.samples.converters import encodings, hashes, maps, numbers, strings, times

__all__ = ["encodings", "hashes", "maps", "numbers", "strings", "times"]
