"""The check of INPUT and OUTPUT, before anything is fetched for a run."""

import os

from fsspec.implementations.local import LocalFileSystem

from jobs.output.store import OutputStore
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, object_info, open_location, uri
from pipeline.storage.urls import mask


def check_places(input_url: str, output: str) -> None:
    """Raise InputError for an INPUT and an OUTPUT that no run can have. Asks no remote store.

    OUTPUT may be a folder of INPUT, which is left out of it. It may not be INPUT, nor hold INPUT.
    """
    fs, source = open_location(input_url, "INPUT")
    store = OutputStore(output)
    store.refuse_read_only()
    if _real_uri(fs, source) == _real_uri(store.fs, store.path):
        raise InputError(
            f"INPUT and OUTPUT are both {mask(input_url)}: name another OUTPUT. It may be a folder "
            f"of INPUT, such as {mask(input_url).rstrip('/')}/labels"
        )
    if store.on_disk:
        _refuse_file(store.path)
    if not isinstance(fs, LocalFileSystem):
        return
    with explain_errors("INPUT", input_url):
        object_info(fs, source)
    if store.on_disk and os.path.isdir(source) and _lies_below(source, store.path):
        raise InputError(
            f"INPUT {mask(input_url)} lies in OUTPUT {mask(output)}, whose files are not input: "
            "choose another OUTPUT. It may be a folder of INPUT"
        )


def _real_uri(fs: object, path: str) -> str:
    """The URL of a place; for a local one, that of the file behind all symbolic links."""
    if isinstance(fs, LocalFileSystem):
        return f"file://{os.path.realpath(path)}"
    return uri(fs, path).rstrip("/")


def _lies_below(path: str, folder: str) -> bool:
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([real, root]) == root


def _refuse_file(path: str) -> None:
    """Raise InputError if OUTPUT is a file, or lies below one."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"OUTPUT: {path} is a file: name a folder, which need not exist yet")
