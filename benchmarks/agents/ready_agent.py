"""The ready agents, as benchmarks serve them.

KIND in the environment names one, and what is left out of it: its cache, or its leases.
"""

import os

from spop.agents import ratelimit, reputation

name, _, left_out = os.environ["KIND"].partition(" without ")
agent = {"reputation": reputation, "ratelimit": ratelimit}[name].agent
if left_out == "cache":
    agent.handlers[name] = agent.handlers[name]._replace(cache=None)
if left_out == "leases":
    ratelimit.LEASE = 0.0
