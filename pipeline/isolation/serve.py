"""What runs in a child process: it answers requests of its worker (child.py) until that ends."""

import importlib
import os
import pickle
import pkgutil
import signal
import sys
import threading
import time

from pipeline.isolation import frames, sandbox

WATCH_SECONDS = 1.0
UNCONFINED = "unconfined"  # the argument of a child that opens stores


def serve(arguments: list[str]) -> None:
    """Serve the process that started this one, as `Child.start` spells the arguments."""
    pipe, memory = int(arguments[0]), int(arguments[1])
    module, _, function = arguments[2].partition(":")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    reason = "it opens stores" if UNCONFINED in arguments else sandbox.why_absent()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _bound_memory(memory)
    sandbox.forbid_new_privileges()
    loaded = importlib.import_module(module)
    if function:
        getattr(loaded, function)()
    if UNCONFINED not in arguments and sys.platform == "linux":
        sandbox.confine(keep=pipe, with_filter=not reason)
    frames.send_answer(pipe, frames.READY, reason)
    _answer_requests(pipe)


def _answer_requests(pipe: int) -> None:
    while True:
        try:
            target, arguments = pickle.loads(frames.receive_request(pipe))
        except (EOFError, ConnectionError):
            return
        try:
            for row in pkgutil.resolve_name(target)(*arguments):
                frames.send_row(pipe, row)
                del row  # it may be gigabytes, which the next one needs
        except ConnectionError:
            return
        except Exception as error:
            frames.send_error(pipe, error)
        else:
            frames.send_answer(pipe, frames.END)


def _end_with(parent: int) -> None:
    """End this process when its parent ends. A child that hangs would outlive its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _bound_memory(most: int) -> None:
    try:
        import resource
    except ImportError:  # Windows does not have this module
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
