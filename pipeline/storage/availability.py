"""Whether stores answer, as far as this process knows.

A store is a host of the web, a bucket, or the disk. One that is gone must end a run, which can be
resumed. One object that always fails, or one store of many, must not: it costs failed rows. Nor may
a store that is gone be waited for again for each of its thousand objects.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TypeVar

from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import InputError, open_location
from pipeline.storage.protocols import WEB, protocol_of, store_of
from pipeline.storage.retries import answered_status, is_transient, is_unknown_host, repeat_while

MOST_STORES = 1 << 12  # stores that are remembered; a list may name a million hosts
FAILURES = 3  # objects that failed in a row: then a store is in trouble
SILENCE = 30.0  # seconds for which a store that did not answer is not asked again
PROBE_SECONDS = 3.0  # for one request that finds out whether a store of the web answers
PROBE_LASTS = 10.0  # seconds for which the result of a probe holds
OTHERS = 16  # stores that are asked whether they answer when another one does not

T = TypeVar("T")


class SilentStore(ConnectionError):
    """A store is not asked, because it did not answer shortly before."""


@dataclass
class _Store:
    """What this process knows of one store. Times are of time.monotonic()."""

    example: str  # an object: the last that was delivered, or one that a plan names
    answered: float = -inf  # when it last delivered or refused an object
    failures: int = 0  # objects in a row whose requests failed until patience ended
    silent_since: float = -inf  # when it was last asked without an answer; -inf after an answer
    silence: str = ""  # the error then
    probed: float = -inf  # when it was last asked whether it answers
    answers: bool = False  # the result
    lock: threading.Lock = field(default_factory=threading.Lock)
    probing: threading.Lock = field(default_factory=threading.Lock)


_stores: OrderedDict[str, _Store] = OrderedDict()
_lock = threading.Lock()


def know(urls: Iterable[str]) -> None:
    """Remember the stores of objects, which are asked when another store does not answer."""
    for url in urls:
        _store(url)


def forget_stores() -> None:
    """Forget what was learned of stores, before other objects than those are looked at."""
    with _lock:
        _stores.clear()


def _store(url: str) -> _Store:
    name = store_of(url)
    with _lock:
        if name not in _stores:
            _stores[name] = _Store(url)
            if len(_stores) > MOST_STORES:
                _stores.popitem(last=False)
        _stores.move_to_end(name)
        return _stores[name]


def ask(url: str, call: Callable[[], T], seconds: float = inf, insist: bool = False) -> T:
    """The result of `call`, which requests the object at `url` with retries.py.

    Requests are repeated for `seconds`, or as long as retries.py does. Those to a store that failed
    for FAILURES objects in a row are not repeated. A store that did not answer at all is asked
    again after SILENCE seconds. With `insist`, earlier failures do not matter.

    Raises the error of `call`, and SilentStore instead of asking a silent store.
    """
    store = _store(url)
    with store.lock:
        now = time.monotonic()
        if now < store.silent_since + SILENCE and not insist:
            raise SilentStore(store.silence)
        once = not insist and (store.failures >= FAILURES or store.silent_since > -inf)
        if store.silent_since > -inf:
            store.silent_since = now  # only this call asks it again
    try:
        with repeat_while(lambda: not once and time.monotonic() - now < seconds):
            result = call()
    except Exception as error:
        if not is_transient(error) or is_unknown_host(error, url):
            if answered_status(error):
                _note_answer(store, store.example)
        else:
            _note_failure(store, url, error, now)
        raise
    _note_answer(store, url)
    return result


def _note_answer(store: _Store, example: str) -> None:
    with store.lock:
        store.answered = time.monotonic()
        store.failures, store.silent_since, store.example = 0, -inf, example


def _note_failure(store: _Store, url: str, error: BaseException, since: float) -> None:
    silent = not answered_status(error) and not _answers_now(url, since)
    with store.lock:
        store.failures += 1
        if silent:
            store.silent_since, store.silence = time.monotonic(), describe_error(error, url)


def concerns_object_alone(url: str, since: float) -> bool:
    """Whether requests for one object failed although its store answers, or another store does.

    `since` is when they began (time.monotonic()): another store that answered later is enough. An
    earlier answer of the store itself proves nothing, because it may be gone since then.
    """
    return _answers_now(url, since) or _another_answers(store_of(url), since)


def _another_answers(name: str, since: float) -> bool:
    recently = since - PROBE_LASTS  # a silent store has thousands of objects, which all ask this
    with _lock:
        others = [store for other, store in _stores.items() if other != name]
    if any(store.answered > recently for store in others):
        return True
    others.sort(key=lambda store: -store.answered)
    return any(_answers_now(store.example, recently) for store in others[:OTHERS])


def _answers_now(url: str, since: float) -> bool:
    """Whether the store of an object answers a request, now or since that time.

    The result of a request holds for PROBE_LASTS at most.
    """
    store = _store(url)
    with store.probing:
        now = time.monotonic()
        if now < store.silent_since + SILENCE:
            return False
        if now > store.probed + PROBE_LASTS or (store.answers and store.probed < since):
            store.probed = now
            store.answers = any(_answers(url, probe) for probe in _probes(url, store))
        return store.answers


def _answers(url: str, probe: Callable[[], object]) -> bool:
    """Whether a probe gets an answer that is no failure of the store."""
    try:
        probe()
    except InputError:
        return False
    except Exception as error:  # stores raise many types
        status = answered_status(error)
        if protocol_of(url) in WEB:
            return 0 < status < 500
        return not is_transient(error) and (status > 0 or isinstance(error, FileNotFoundError))
    return True


def _probes(url: str, store: _Store) -> list[Callable[[], object]]:
    """Requests that show whether a store answers. They are not repeated."""
    protocol = protocol_of(url)
    if protocol in ("s3", "s3a"):
        return [partial(_list_one_key, url)]
    if protocol not in WEB:
        return [partial(_look, store.example)]
    others = [store.example] if store.example != url else []
    return [partial(_look, address) for address in (f"{store_of(url)}/", *others)]


def _look(url: str) -> None:
    fs, path = open_location(url, "store")
    if protocol_of(url) in WEB:
        fs.look(path, PROBE_SECONDS)
    else:
        fs.info(path)


def _list_one_key(url: str) -> None:
    fs, path = open_location(url, "store")
    bucket, *_ = fs.split_path(path)
    fs.call_s3("list_objects_v2", fs.req_kw, Bucket=bucket, MaxKeys=1)
