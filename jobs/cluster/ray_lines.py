"""Lines of Ray's own (2.60) on stderr that say nothing to a user of ours. Errors stay."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

# Ray starts a cluster of our own with a token that it makes: that this is so is no news.
_TOKENS = "ray._private.authentication.authentication_token_setup"
# Ray Data puts arguments of all its actors into the object store, and Ray's core warns of the first
# such actor of a process (ray-project/ray#57733). The driver holds them, so that they are not lost.
_ACTOR_WARNING = b"has constructor arguments in the object store and max_restarts > 0"
_NOWHERE = "detr_batch_nowhere"  # a resource that no node has


def hush_logs() -> None:
    """Leave news, and tracebacks of what a command says in a line, to Ray's own log files."""
    for name, level in (("ray", logging.WARNING), ("ray.data", logging.CRITICAL)):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(level)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is shown
    logging.getLogger(_TOKENS).setLevel(logging.ERROR)


def hush_actor_warning() -> None:
    """Let Ray give its one warning of such actors now, and keep it off stderr: it comes once.

    The actor that causes it never runs, as it asks for what no node has. It costs 0.1 s.
    """

    class Unplaced:
        def __init__(self, _: Any):
            pass

    with _stderr_without(_ACTOR_WARNING):
        kind = ray.remote(num_cpus=0, max_restarts=1, resources={_NOWHERE: 1})(Unplaced)
        ray.kill(kind.remote(ray.put(None)))


@contextmanager
def _stderr_without(text: bytes) -> Iterator[None]:
    """Hold back what this process writes on stderr meanwhile, then write all lines but those."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as held, open(stderr, "wb", closefd=True) as out:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            held.seek(0)
            out.writelines(line for line in held if text not in line)
