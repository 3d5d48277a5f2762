"""Start Ray on this machine, or connect to that of a cluster. Nothing here needs torch."""

import importlib
import signal
import threading
from contextlib import nullcontext, suppress

import ray
from ray.exceptions import AuthenticationError

from jobs.cluster.ray_internals import private_ray
from jobs.cluster.ray_lines import hush_actor_warning, hush_logs
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.limits import low_limit

START_TOO_SLOW = "timed out during startup"  # in Ray's error where its first node is late
# Ray's own settings of a Ray that ends with this process. By default `ray.init` waits for a worker
# for each CPU, although the first actors want others.
LOCAL_SETTINGS = {"prestart_worker_first_driver": False}


def start_ray_beside_torch() -> None:
    """Start Ray on this machine while a thread imports torch, which takes as long.

    An error is left to who needs Ray or torch, and tries again. The thread imports nothing of Ray:
    two threads that import modules of one package may see unfinished ones.
    """
    importing = threading.Thread(target=_import_torch, name="torch", daemon=True)
    importing.start()
    try:
        start_ray(None)
    except (CommandFailed, InputError):
        ray.shutdown()
    finally:
        importing.join()


def _import_torch() -> None:
    with suppress(Exception):
        importlib.import_module("torch")


def start_ray(address: str | None) -> None:
    """Connect to the cluster at an address, or start a local one that ends with this process."""
    hush_logs()
    if ray.is_initialized():
        return
    start = nullcontext() if address else private_ray()
    if not address and (limit := low_limit()) is not None:
        raise CommandFailed(f"{limit}, then run the same command again")
    address = address or "local"  # never an old cluster that still runs on this machine
    try:
        with start:
            ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=False,
                configure_logging=False,
                _system_config=None if address != "local" else LOCAL_SETTINGS,
            )
    except (AuthenticationError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        if address == "local":
            raise InputError(f"Ray does not start on this machine: {reason}") from error
        raise InputError(
            f"--address {address}: no Ray cluster answers there, or it wants another token (set "
            f"RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH): {reason}"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            place = "on this machine" if address == "local" else f"for --address {address}"
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise CommandFailed(f"Ray does not start {place}: {reason}") from error
        raise InputError(
            f"--address {address}: {' '.join(str(error).split())}. Use the image of "
            "infra/Dockerfile on all nodes, or install the cluster's versions here"
        ) from error
    except Exception as error:  # Ray (2.60) raises this type where its first node is late
        if START_TOO_SLOW not in str(error):
            raise
        raise CommandFailed(
            "Ray did not start within half a minute, as it does where a machine is very busy or "
            "short of memory: nothing is lost, run the same command again"
        ) from error
    hush_actor_warning()
    _take_sigterm_back()


def _take_sigterm_back() -> None:
    """Let Python alone handle SIGTERM again.

    Ray (2.60) also handles it in C++, which prints a stack and aborts the process after three
    seconds, even if it is about to release its lock.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
