import contextlib
@contextlib.contextmanager
def retained_heap():
    yield
