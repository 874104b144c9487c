"""The fetches that HAProxy has, by where they look."""

from spop.engine.samples.fetches import connection, constants, cookies, headers, messages

__all__ = ["connection", "constants", "cookies", "headers", "messages"]
