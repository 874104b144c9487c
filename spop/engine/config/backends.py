def load_backends(path):
    raise NotImplementedError
