"""Load for agents: as many NOTIFY frames as wanted, every ACK matched.

`generator` is one process's connections and loop, `histogram` its latencies, `run` starts
generators in processes of their own and adds up, `report` writes results down. `acks` chooses
between the twins `_acks` and `_acks_py`, which take ACKs apart.
"""
