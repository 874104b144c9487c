"""The fetches of HAProxy, by what they read."""

from spop.engine.samples.fetches import connection, constants, cookies, headers, messages

__all__ = ["connection", "constants", "cookies", "headers", "messages"]
