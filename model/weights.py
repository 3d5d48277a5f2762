"""Find the local file for the weights that a user names."""

import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fsspec import AbstractFileSystem, get_filesystem_class
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from model.errors import CheckpointError, CheckpointUnavailable, DamagedCheckpoint
from model.web_version import web_version

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Protocols of weights. fsspec would open many others, and chains of them (`zip://a::http://b`).
PROTOCOLS = ("file", "http", "https", "s3", "s3a", "abfs", "abfss", "az", "gcs", "gs", "hf")

# Statuses by which a web server refuses for now: timeout, too early, too many requests; 500 and up.
PASSING, SERVER_FAILS = (408, 425, 429), 500

HIDDEN, SHORTEST = "***", 4  # shorter parts of a URL may be words


def cache_folder() -> Path:
    """The folder of downloaded weights: `$XDG_CACHE_HOME/detr-batch` or `~/.cache/detr-batch`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr-batch"


def find_weights(weights: str) -> Path:
    """The local file of `weights`: a path, a URL of PROTOCOLS or a hub id. It is downloaded once.

    A suffix `#sha256=<hex>` is checked. Raises CheckpointError if there are no such weights. Its
    subclasses are raised if they cannot be fetched now (CheckpointUnavailable) or if the sha256
    differs (DamagedCheckpoint).
    """
    name, _, digest = weights.partition("#sha256=")
    path = _fetch(name)
    if digest and digest.lower() != (found := file_sha256(path)):
        raise DamagedCheckpoint(
            f"{_without_secrets(name)} has sha256 {found}, not the {digest} that was asked for"
        )
    return path


def _fetch(place: str) -> Path:
    path = Path(place)
    if path.is_file():
        return path
    if "://" in place:
        return _from_url(place)
    if re.fullmatch(r"[\w-]+/[\w.-]+", place) and not path.parent.is_dir():
        return _from_hub(place)
    if path.is_dir():
        raise CheckpointError(
            f"weights {place} are a folder: give the file in it, such as "
            f"{path / 'model.safetensors'}"
        )
    raise CheckpointError(
        f"no weights at {place}: pass a file, a URL, a hub id, the name of a model, 'packaged' or "
        "'random'"
    )


def _from_hub(repository: str) -> Path:
    """The local file of the repository's weights, from the hub or from its cache."""
    unreachable: Exception | None = None
    # The hub's client repeats requests, half a minute for each file, also where there is no host.
    cached_only = not is_hub_resolvable()
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name, local_files_only=cached_only))
        except LocalEntryNotFoundError as error:  # the other file of HUB_FILES may be cached
            unreachable, cached_only = error, True
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointUnavailable(
                f"weights {repository} cannot be fetched: {reason}"
            ) from error
    if unreachable:
        raise CheckpointUnavailable(
            f"weights {repository} are neither cached nor reachable: give a file or URL that "
            "holds them as weights (--weights, weights= in Python), or take the model shapes-tiny, "
            "whose weights need no network"
        ) from unreachable
    raise CheckpointError(f"{repository} has none of {', '.join(HUB_FILES)}")


def is_hub_resolvable() -> bool:
    """Whether the host of the hub has an address."""
    return is_resolvable(constants.ENDPOINT)


def is_resolvable(url: str) -> bool:
    """Whether the host of a URL has an address. A proxy finds that out itself, so it is assumed."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _from_url(url: str) -> Path:
    """A cached copy of `url`, named by the version that the store reports.

    If the store reports no version, the object is fetched each time. If the store cannot be
    reached, this is the copy that was used last.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise CheckpointError(
            f"weights {_without_secrets(url)}: {protocol}:// is none of "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)}: copy the file to one of these"
        )
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    suffix = Path(re.split("[?#]", url)[0]).suffix
    try:
        fs, path = _file_system(protocol, url)
        version = _version(fs, path)
        copy = _copy_named(folder, version, suffix)
        if version is None or not copy.is_file():
            return _fetch_copy(fs, path, version, copy)
        with suppress(OSError):  # a cache may be another user's
            copy.touch()
        return copy
    except Exception as raised:  # stores raise many types of errors
        error = _reason_of(raised)
        copies = sorted(folder.glob(f"[!.]*{suffix}"), key=lambda file: file.stat().st_mtime)
        if copies and not isinstance(error, FileNotFoundError | PermissionError):
            return copies[-1]
        shown = _without_secrets(url)
        reason = (_hide(url, str(error)).splitlines() or [type(error).__name__])[0]
        gone = isinstance(error, FileNotFoundError | PermissionError)
        kind = CheckpointError if gone else CheckpointUnavailable
        raise kind(f"weights cannot be fetched from {shown}: {reason}") from raised


def _version(fs: AbstractFileSystem, path: str) -> str | None:
    """The version of an object, or None if the web reports none.

    This is the ETag where there is one. fsspec's `ukey` of a web object is made of the address
    alone; that of other objects of all that is reported, such as (on Azure) when it was read last.
    """
    info = fs.info(path)
    if "http" in fs.protocol:
        return web_version(info)
    return str(info.get("ETag") or info.get("etag") or fs.ukey(path))


def _copy_named(folder: Path, name: str | None, suffix: str) -> Path:
    return folder / f"{hashlib.sha256(str(name).encode()).hexdigest()[:16]}{suffix}"


def _fetch_copy(fs: AbstractFileSystem, path: str, version: str | None, copy: Path) -> Path:
    """Fetch an object to `copy`, whose name is that of its `version`.

    If this version is None, or is not the version any more when the content has come, the copy is
    named by its content.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{copy.name}.{secrets.token_hex(8)}")  # machines may share a cache
    try:
        if "http" in fs.protocol:  # many servers do not deliver parts of a file
            fs.get_file(path, str(partial))
        else:
            with fs.open(path, "rb") as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        if version is None or _version(fs, path) != version:
            copy = _copy_named(copy.parent, file_sha256(partial), copy.suffix)
        return partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _reason_of(error: Exception) -> Exception:
    """The error of the web behind fsspec's, which says of all of them that nothing is there.

    If the server refuses for good, or the address is bad, it is a FileNotFoundError. The text of
    aiohttp's error for an answer is not taken: it spells the address, secrets too, in its own way.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    found = cause if isinstance(cause, Exception) else error
    status = getattr(found, "status", None)
    if isinstance(status, int):
        kind = ConnectionError if status in PASSING or status >= SERVER_FAILS else FileNotFoundError
        answer = f"the server answers {status} {getattr(found, 'message', '')}".strip()
        return kind(answer if status else type(found).__name__)
    return error if isinstance(found, ValueError) and not isinstance(found, OSError) else found


def _file_system(protocol: str, url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it. `::` is a part of the path."""
    kind = get_filesystem_class(protocol)
    url = protocol + url[len(protocol) :]
    options = _web_options() if "http" in kind.protocol else {}
    return kind(**options, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


def _web_options() -> dict[str, Any]:
    """Options of fsspec's file system of the web: the whole content, as long as it may take.

    A request fails only if it stalls; aiohttp's default is five minutes for all of it.
    """
    from aiohttp import ClientTimeout  # takes 0.1 s, and only weights of the web need it

    timeout = ClientTimeout(total=None, sock_connect=20, sock_read=30)
    return {"client_kwargs": {"timeout": timeout, "headers": {"Accept-Encoding": "identity"}}}


def _without_secrets(url: str) -> str:
    """A path or URL without user, password, query and fragment."""
    protocol, separator, rest = url.rpartition("://")
    if not separator:
        return url
    return protocol + separator + re.split("[?#]", rest.rpartition("@")[2])[0]


def _hide(url: str, text: str) -> str:
    """A text about `url`, as `_without_secrets`, without the parts that may be secret."""
    path, query = (*re.split("[?#]", url, maxsplit=1), "")[:2]
    user = path.partition("://")[2].rpartition("@")[0]
    text = text.replace(url, _without_secrets(url))
    for secret in (query, user, user.partition(":")[2]):
        text = text.replace(secret, HIDDEN) if len(secret) >= SHORTEST else text
    return text


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
