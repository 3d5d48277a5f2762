"""The parts of a URL, and which of them are secret."""

import re
from urllib.parse import unquote

from pipeline.storage.secret_names import is_beside_signature, is_secret_parameter, normalize

WEB = ("http", "https", "ws", "wss", "ftp", "ftps")
# Names of these objects may contain `?`, `&` and `=`. In local paths they may too.
NAMES = ("s3", "s3a", "gs", "gcs", "file", "local")
AZURE = ("abfs", "abfss", "wasb", "wasbs", "az")  # abfss://container@account/...: no user
SEPARATORS = r"[?&;#]"
_PATH_PARAMETER = re.compile(r";([^;/=]+)=([^;/]*)")  # of a web address: `/a.jpg;jsessionid=5`
SHORTEST = 4  # characters of a secret that is removed wherever it occurs


def split_user(kind: str, rest: str) -> tuple[str, str]:
    """Split what follows `://` into the user with the password, and the part without them.

    `kind` is the protocol in lower case. A password may contain `@`. It may also contain `/`, `?`
    or `#`, if what stands before them is no host with a port.
    """
    if kind in ("file", "local") or "@" not in rest:
        return "", rest
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user = authority.rpartition("@")[0]
        if kind in AZURE and ":" not in user:
            return "", rest
    elif is_host(authority):
        return "", rest
    else:
        user = rest.rpartition("@")[0]
    return user, rest[len(user) + 1 :]


def is_host(authority: str) -> bool:
    """Whether this is a host, perhaps with a port, or the name of an access point of S3."""
    _, colon, port = authority.rpartition(":")
    if not colon or authority.startswith("arn:") or authority.endswith("]"):
        return True
    return port.isdecimal() and int(port[:6]) < 1 << 16


def secrets_of(url: str) -> list[str]:
    """The user with the password of a URL, parts of the password, and values of its parameters.

    The longest comes first. Short ones are left out, because they may be words.
    """
    protocol, separator, rest = url.partition("://")
    if not separator:
        return []
    user, rest = split_user(protocol.lower(), rest)
    found = [f"{user}@", user, *re.split(r"[/@?#:]", user.partition(":")[2])] if user else []
    if protocol.lower() not in NAMES:
        pairs = map(_split_pair, re.split(SEPARATORS, rest)[1:])
        values = [value for name, value in pairs if is_secret_parameter(name, value)]
        pairs_of_path = _PATH_PARAMETER.findall(re.split("[?#]", rest)[0])
        values += [value for name, value in pairs_of_path if is_secret_parameter(name, value)]
        found += [*values, *map(unquote, values)]
    return sorted({one for one in found if len(one) >= SHORTEST}, key=len, reverse=True)


def has_secret_parameters(query: str) -> bool:
    """Whether one of the parameters of a query, or of a fragment, is secret."""
    return any(
        is_secret_parameter(*_split_pair(pair))
        for pair in re.split(rf"{SEPARATORS}|\\u0026", query)
        if "=" in pair
    )


def without_secret_parameters(rest: str) -> str:
    """An address without the secret parameters of its path, its query and its fragment."""
    path, _, fragment = rest.partition("#")
    path, _, query = path.partition("?")
    path = _PATH_PARAMETER.sub(
        lambda found: "" if is_secret_parameter(found[1], found[2]) else found[0], path
    )
    query = _public_parameters(query, "&".join(pair for pair in query.split("&") if pair))
    fragment = _public_parameters(fragment, fragment)
    return path + (f"?{query}" if query else "") + (f"#{fragment}" if fragment else "")


def without_shared_access(rest: str) -> str:
    """The name of an object of Azure without a shared access signature, which has a version.

    Other names may contain `?`.
    """
    path, _, query = rest.partition("?")
    names = {normalize(_split_pair(pair)[0]) for pair in query.split("&")}
    return path if "sig" in names else rest


def _public_parameters(query: str, unchanged: str) -> str:
    """The parameters that do not belong to a signature; `unchanged` if none is secret."""
    if not has_secret_parameters(query):
        return unchanged
    pairs = [(part, *_split_pair(part)) for part in re.split("[&;]", query) if part]
    names = frozenset(normalize(name) for _, name, _ in pairs)
    return "&".join(
        part
        for part, name, value in pairs
        if not is_secret_parameter(name, value)
        and not is_beside_signature(normalize(name), value, names)
    )


def _split_pair(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return name, value
