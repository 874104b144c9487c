"""Ready agents, each in a module of its own: ``spop serve spop.agents.NAME:agent``.

They need the extra ``agents``. Each one is also an example of how to write an agent. They know only
what `spop` exports to everybody.
"""
