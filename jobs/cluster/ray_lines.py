"""Hide lines of Ray (2.60) that are of no use to our users. Errors of ours stay."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from jobs.cluster.ray_internals import skip_lines

# Ray creates a token for each local cluster, and this logger reports it at every start.
_TOKENS = "ray._private.authentication.authentication_token_setup"
# Ray Data puts the arguments of its actors into the object store, and Ray's core warns at the first
# such actor of a process (ray-project/ray#57733). The driver holds the arguments, so they cannot be
# lost.
_ACTOR_WARNING = b"has constructor arguments in the object store and max_restarts > 0"
# A run that a budget ends, and a probe, end their actors while these compute. Ray reports each call
# that was under way as failed, and to be tried again.
_KILLED_ON_PURPOSE = "The actor is dead because it was killed by `ray.kill`"
UNHANDLED = "RAY_IGNORE_UNHANDLED_ERRORS"  # a variable that Ray reads at each such error
_NOWHERE = "detr_batch_nowhere"  # a resource that no node has


def hush_logs() -> None:
    """Keep Ray's information, and tracebacks of errors that we print, to Ray's own log files.

    Sets UNHANDLED in the environment of this process.
    """
    for name, level in (("ray", logging.WARNING), ("ray.data", logging.CRITICAL)):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(level)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is printed
    logging.getLogger(_TOKENS).setLevel(logging.ERROR)
    skip_lines(_KILLED_ON_PURPOSE)
    # Nobody waits for the tasks that a budget ends. Errors of all others are raised where they are
    # waited for.
    os.environ.setdefault(UNHANDLED, "1")


def hush_actor_warning() -> None:
    """Trigger Ray's warning about actors with arguments in the object store, and hide it.

    Ray gives the warning once in a process. The actor that triggers it never runs, because it needs
    a resource that no node has. It costs 0.1 s.
    """

    class Unplaced:
        def __init__(self, _: Any):
            pass

    with _stderr_without(_ACTOR_WARNING):
        kind = ray.remote(num_cpus=0, max_restarts=1, resources={_NOWHERE: 1})(Unplaced)
        ray.kill(kind.remote(ray.put(None)))


@contextmanager
def _stderr_without(text: bytes) -> Iterator[None]:
    """Collect what the block writes on stderr, then write all lines but those with `text`."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # this process has no stderr
        yield
        return
    with tempfile.TemporaryFile() as lines, open(stderr, "wb", closefd=True) as out:
        os.dup2(lines.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            lines.seek(0)
            out.writelines(line for line in lines if text not in line)
