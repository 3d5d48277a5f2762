"""`probe` checks whether a node of a cluster can work, before anything is computed."""

import socket
import uuid
from importlib.metadata import PackageNotFoundError, version

from fsspec.implementations.local import LocalFileSystem

from jobs.output import paths
from pipeline.schema import Member
from pipeline.storage.access import use_input_access
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import join, open_location, open_object, read_object, write_whole
from pipeline.storage.urls import mask

PACKAGES = ("ray", "torch", "pyarrow", "fsspec", "s3fs", "pillow", "simplejpeg")


def probe(
    versions: dict[str, str], output: str, first: Member, access: str | None = None
) -> str | None:
    """The first problem of this node, in one line. None if there is no problem.

    `versions` are the versions of the driver, by package. `output` is OUTPUT, in which the driver
    has its lock. `first` is an object that the run is to read, by `access` (storage/access.py).
    """
    node = socket.gethostname()
    for name, wanted in versions.items():
        found = _version(name)
        if found != wanted:
            return (
                f"node {node} has {name} {found or 'not at all'}, and the driver {wanted}: use the "
                "image of infra/Dockerfile on all nodes"
            )
    try:
        fs, lock = open_location(join(output, paths.LOCK), "OUTPUT")
        read_object(fs, lock)
    except FileNotFoundError:
        return (
            f"node {node} does not see what the driver wrote to {mask(output)}: OUTPUT has to be "
            "a bucket, or a folder that all nodes share"
        )
    except Exception as error:  # stores raise many types
        return f"node {node} cannot read OUTPUT: {describe_error(error, output)}"
    try:
        _, trial = open_location(join(output, paths.trial(uuid.uuid4().hex)), "OUTPUT")
        write_whole(fs, trial, b"")
        fs.rm_file(trial)
    except Exception as error:
        return f"node {node} cannot write OUTPUT: {describe_error(error, output)}"
    use_input_access(access, output)
    return _unreadable(node, first)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _unreadable(node: str, first: Member) -> str | None:
    """Why this node cannot read INPUT. None if it can.

    An object that left a bucket is no problem here: it fails as one row of the run.
    """
    try:
        fs, path = open_location(first.uri, "INPUT")
        with open_object(fs, path) as file:
            file.read(1)
    except Exception as error:  # stores raise many types
        gone = isinstance(error, FileNotFoundError)
        if gone and not isinstance(fs, LocalFileSystem):
            return None
        return f"node {node} cannot read INPUT: {describe_error(error, first.uri)}"
    return None
