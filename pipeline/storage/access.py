"""How the stores of INPUT are asked: with credentials, without any, or as one who pays.

Public buckets refuse requests that are signed by somebody whom they do not know. Buckets whose
requesters pay refuse requests that do not say so. OUTPUT is always asked with credentials.
"""

from typing import Any

from pipeline.storage.errors import InputError
from pipeline.storage.protocols import EXTRAS, WEB, protocol_of, store_of

ANONYMOUS, REQUESTER_PAYS = "anonymous", "requester-pays"
# Options of file systems, by access and by the extra of their package; s3fs belongs to no extra.
_OPTIONS: dict[tuple[str, str | None], dict[str, Any]] = {
    (ANONYMOUS, None): {"anon": True},
    (ANONYMOUS, "gcs"): {"token": "anon"},
    (ANONYMOUS, "azure"): {"anon": True},
    (ANONYMOUS, "hf"): {"token": False},
    (REQUESTER_PAYS, None): {"requester_pays": True},
    (REQUESTER_PAYS, "gcs"): {"requester_pays": True},
}
_access: str | None = None  # of this process
_output: str | None = None  # the store of OUTPUT


def use_input_access(access: str | None, output: str | None = None) -> None:
    """Ask stores in this way from now on, in this process; None: with credentials.

    The store of the URL `output` is asked with credentials.
    """
    global _access, _output
    _access, _output = access, store_of(output) if output else None


def access_options(url: str) -> dict[str, Any]:
    """The options of the file system of an object, for `use_input_access`.

    Raises InputError for a store of which no requester can pay.
    """
    protocol = protocol_of(url)
    if _access is None or protocol in (None, "file", *WEB) or store_of(url) == _output:
        return {}
    options = _OPTIONS.get((_access, EXTRAS.get(str(protocol))))
    if options is None:
        raise InputError(f"--input-access {_access} is for s3:// and gs://, not for {protocol}://")
    return options
