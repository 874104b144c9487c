def load_spoe(path, engine=None, *, haproxy_version=None):
    raise NotImplementedError
