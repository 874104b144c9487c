"""The load generator: it sends NOTIFY frames and matches every ACK.

`generator` has the connections and the loop of one process, `histogram` its latencies. `run` starts
generators in processes and adds up their results, `report` writes them. `acks` chooses the twin
that reads ACKs.
"""
