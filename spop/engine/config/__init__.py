"""HAProxy's own configuration files: the SPOE file, and the backends of a ``haproxy.cfg``."""
