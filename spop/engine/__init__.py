"""HAProxy's end of SPOE in Python: what its filter does, for proxies and servers of your own."""
