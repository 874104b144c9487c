"""Talking to agents: `Client` sends messages and waits for the answers."""

from spop.client.blocking import Client

__all__ = ["Client"]
