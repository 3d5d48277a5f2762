"""URLs in messages and records: texts without secrets, and the names of objects.

A text that is masked is read from left to right. Every URL in it is parsed as a URL. What stands
between the URLs is searched for named secrets (`token=...`, `Authorization: ...`) and for tokens of
known forms.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from pipeline.storage.secret_names import (
    AMBIGUOUS,
    HEADERS,
    PASSWORDS,
    SIGNED,
    TOKEN,
    is_secret_parameter,
    normalize,
)
from pipeline.storage.url_parts import (
    AZURE,
    NAMES,
    SEPARATORS,
    WEB,
    has_secret_parameters,
    is_host,
    secrets_of,
    split_user,
    without_secret_parameters,
    without_shared_access,
)

HIDDEN = "***"
PASSES = 8  # what is hidden may uncover the name of another secret: `AKIA...sig=...`


def mask(text: str, url: str = "") -> str:
    """`text`, a URL or a message that contains URLs, without the parts that may be secret.

    These are: the user and password of a URL, the query of a web address, parameters and headers
    with secret names, and tokens of known forms. The names of files and of S3 objects may contain
    question marks, so these are not removed. `url` is the URL that the text is about: its secrets
    are removed wherever they occur.

    To mask the result again does not change it. The time is linear in the length of the text.
    """
    for secret in secrets_of(url):
        text = text.replace(secret, HIDDEN)
    for _ in range(PASSES):
        shown = _mask(text, whole_queries=True)
        if shown == text:
            break
        text = shown
    return text


def holds_secret(text: str) -> bool:
    """Whether a text contains a password, a signature or a token. A plain query is no secret."""
    return _mask(text, whole_queries=False) != text


_MAY_HOLD_SECRET = re.compile("[@?]|[;#].*=", re.DOTALL)


def identity(url: str) -> str:
    """The name of the object at `url`, which is the same in all tables and all runs.

    It does not contain the user, the password and the parameters of signed addresses. It contains
    other parameters (`/image?id=5`).
    """
    if not _MAY_HOLD_SECRET.search(url):
        return url
    protocol, separator, rest = url.partition("://")
    if not separator or re.fullmatch(r"[A-Za-z0-9+.-]+", protocol) is None:
        return url
    kind = protocol.lower()
    rest = split_user(kind, rest)[1]
    if kind in AZURE:
        rest = without_shared_access(rest)
    elif kind not in NAMES:  # the web, and protocols that are refused
        rest = without_secret_parameters(re.sub(r"[\t\r\n]", "", rest))
    return f"{protocol}://{rest}"


def printable(text: str) -> str:
    """`text` with control characters escaped, because names may use them to control a terminal."""
    return "".join(
        sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else f"\\x{ord(sign):02x}"
        for sign in text
    )


def has_control_character(text: str) -> bool:
    """Whether a text has one, or half of a surrogate pair, which no file can hold."""
    return any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


def _mask(text: str, whole_queries: bool) -> str:
    """`text` without secrets. Of web addresses either all queries go, or only secret ones."""
    parts: list[str] = []
    done = 0
    for found in _addresses(text, whole_queries):
        parts.append(_mask_names(text[done : found.start]))
        parts.append(_mask_address(text, found, whole_queries))
        done = found.stop
    parts.append(_mask_names(text[done:]))
    return "".join(parts)


# What follows the protocol of a URL: as it is, with the slash that people forget in a web address,
# in JSON that escapes `/`, or percent-encoded, up to four times.
_SEPARATOR = re.compile(
    r"://|(?:(?<=http)|(?<=https)):/|(?P<json>:\\/\\/)"
    r"|(?::|%(?:25){0,3}3A)%(?P<times>(?:25){0,3})2F%(?:25){0,3}2F",
    re.IGNORECASE,
)
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_LONGEST_PROTOCOL = 32
_OPENING = frozenset("'\"`([{<,;|")  # what may stand before a URL
_CLOSING = {
    opening: re.compile(rf"(?<!=){re.escape(closing)}(?=[\s,;:)\]}}>]|\Z)")
    for opening, closing in ("''", "()", "[]", "{}", "``")
}
# What ends a URL. In HTML it may be escaped.
_STOP = re.compile(r"[\s<>\"]|&(?:quot|lt|gt|#34|#x22);", re.IGNORECASE)
_STOP_ENCODED = re.compile(r"[\s<>\"&=/?#,;'`(){}\[\]|\\]")
_SPACE = re.compile(r"\s")
# What follows a URL in a sentence, in code or in HTML. It is searched in the last characters.
_TRAILING = re.compile(r"(?:[.,;:!?'\")\]}>*`\\]|&(?:#39|#x27|apos);)+\Z", re.IGNORECASE)
_TRAILING_LENGTH = 32


class _Address(NamedTuple):
    """A URL in a text. `times` is how often it is percent-encoded."""

    start: int
    body: int  # where the part behind `://` starts
    stop: int
    times: int
    json: bool  # whether `/` is escaped


def _addresses(text: str, whole_queries: bool) -> Iterator[_Address]:
    """The URLs in a text. They do not overlap: a URL in the query of another belongs to that."""
    separators = list(_SEPARATOR.finditer(text))
    starts = [_start_of_protocol(text, match.start()) for match in separators]
    done = 0
    for number, (match, start) in enumerate(zip(separators, starts, strict=True)):
        if start < done:
            continue
        following = starts[number + 1] if number + 1 < len(starts) else len(text)
        times = 0 if match["times"] is None else len(match["times"]) // 2 + 1
        found = _Address(start, match.end(), 0, times, bool(match["json"]))
        done = _end(text, found, max(following, found.body))
        if whole_queries and done == following < len(text) and _is_in_query(text, found, done):
            done = _end(text, found, len(text))
        yield found._replace(stop=done)


def _start_of_protocol(text: str, stop: int) -> int:
    protocol = _PROTOCOL.search(text[max(0, stop - _LONGEST_PROTOCOL) : stop])
    return stop - (len(protocol.group()) if protocol else 0)


def _is_in_query(text: str, found: _Address, position: int) -> bool:
    """Whether the URL at `position` belongs to the query of the web address before it."""
    before = text[position - 1]
    is_web = _is_web(text[found.start : found.body])
    is_listed = before in _OPENING or before.isspace()
    return is_web and not is_listed and text.find("?", found.body, position) >= 0


def _end(text: str, found: _Address, limit: int) -> int:
    """Where a URL ends; at `limit` at the latest."""
    start, body = found.start, found.body
    if found.times:
        match = _STOP_ENCODED.search(text, body, limit)
        return match.start() if match else limit
    match = _STOP.search(text, body, limit)
    stop = match.start() if match else limit
    if match and not _SPACE.match(match.group()):
        authority = re.split(r"[/?#]", text[body:stop], maxsplit=1)[0]
        if "@" not in authority and not is_host(authority):  # a quote within the password
            space = _SPACE.search(text, body, limit)
            at = text.rfind("@", stop, space.start() if space else limit)
            match = _STOP.search(text, at, limit) if at >= 0 else match
            stop = match.start() if match else limit
    while match and match.group() == '"' and text[stop - 1] == "=":  # `?sig="..."`
        match = _STOP.search(text, stop + 1, limit)
        stop = match.start() if match else limit
    closing = _CLOSING.get(text[start - 1] if start else "")
    if closing and (closed := closing.search(text, body, stop)):
        stop = closed.start()
    trailing = _TRAILING.search(text, max(body, stop - _TRAILING_LENGTH), stop)
    return trailing.start() if trailing else stop


def _mask_address(text: str, found: _Address, whole_queries: bool) -> str:
    """What is shown of a URL. An encoded URL is decoded, masked, and encoded again."""
    url = text[found.start : found.stop]
    decoded = url
    for _ in range(found.times):
        decoded = unquote(decoded)
    if found.json:
        decoded = url.replace("\\/", "/").replace("\\u0026", "&").replace("\\u003d", "=")
    if decoded != url:
        decoded = re.sub(r"[\s<>\"]", lambda sign: quote(sign.group()), decoded)
        shown = _mask(decoded, whole_queries)
        if shown == decoded:
            return url
        for _ in range(found.times):
            shown = quote(shown, safe="*")
        return shown.replace("/", "\\/") if found.json else shown
    protocol = url[: found.body - found.start].rstrip(":/").lower()
    _, rest = split_user(protocol, url[found.body - found.start :])
    return text[found.start : found.body] + _mask_rest(protocol, rest, whole_queries)


def _mask_rest(protocol: str, rest: str, whole_queries: bool) -> str:
    """What is shown of a URL behind the user and password."""
    path, mark, query = rest.partition("?")
    if protocol in NAMES:
        signed = any(normalize(pair).startswith(SIGNED) for pair in re.split(SEPARATORS, query))
        return path if signed else rest
    if mark and ((whole_queries and _is_web(protocol)) or has_secret_parameters(query)):
        rest = path
    if "#" in rest and has_secret_parameters(rest.partition("#")[2]):
        rest = rest.partition("#")[0]
    return _mask_names(rest)


def _is_web(protocol: str) -> bool:
    return protocol.rstrip(":/\\").lower().endswith(WEB)


_NAME = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]{2,64}+)(?P<quote>\\?[\"'])?"
    r"(?P<sign>[ \t]{0,3}(?:=|:|%(?:25){0,3}3D|\\u003d|,(?=[ \t]{0,3}b?['\"]))[ \t]{0,3})"
    r"(?:b?(?P<open>\\?[\"']))?",
    re.IGNORECASE,
)
# Escaped separators directly before a name: `%26sig`, `\u0026sig`.
_ESCAPED = re.compile(r"%(?:25){0,3}(?:2[0236789CF]|3[BF])|\\u00(?:26|3f)", re.IGNORECASE)
_VALUE = re.compile(r"[\s&\"<>]|\Z")  # what ends a value
_LINE = re.compile(r"[\r\n]|\Z")
_FIGURE = re.compile(r"[^\s\d]{0,64}\d")  # a value that is no word of a sentence
_REQUEST = re.compile(r"(?:url: ?|\b[A-Z]{3,7} )\Z")  # what stands before the path of a request
_LOOK_BACK = 256
_USER = re.compile(r"(?<!:)//[^\s/@:]{1,256}+:[^\s/]{0,256}@")  # //user:password@host
_BEARER = re.compile(
    r"\b(bearer|basic)([ \t]+)(?=[^\s\"',;]{0,512}\d)[\w.~+/=-]{8,}+", re.IGNORECASE
)


def _mask_names(text: str) -> str:
    """A text without URLs, with values of secret names hidden, and tokens of known forms."""
    if not text:
        return text
    parts: list[str] = []
    done = position = 0
    while match := _NAME.search(text, position):
        start = position = match.end()
        name = _name(text, match)
        if _is_secret_name(name) and _has_value(text, match, name):
            stop = _end_of_value(text, match, name)
            if start < stop:
                parts += [text[done:start], HIDDEN]
                done = position = stop
    parts.append(text[done:])
    text = _USER.sub("//", "".join(parts))
    return TOKEN.sub(HIDDEN, _BEARER.sub(rf"\1\2{HIDDEN}", text))


def _name(text: str, match: re.Match[str]) -> str:
    """The name before a sign, without an escaped separator before it."""
    name = match["name"]
    before = text[match.start() - 1 : match.start()]
    if before in ("%", "\\") and (escaped := _ESCAPED.match(before + name)):
        name = (before + name)[escaped.end() :]
    return name


@lru_cache(1 << 12)
def _is_secret_name(name: str) -> bool:
    return is_secret_parameter(name)


def _end_of_value(text: str, match: re.Match[str], name: str) -> int:
    """Where the value ends: at the closing quote, the end of the line (headers), or a space."""
    start, quoted = match.end(), match["open"]
    if quoted:
        closed = text.find(quoted, start)
        line = text.find("\n", start, closed if closed >= 0 else len(text))
        return next((stop for stop in (line, closed) if stop >= 0), len(text))
    ending = (_LINE if normalize(name) in HEADERS else _VALUE).search(text, start)
    stop = ending.start() if ending else len(text)
    trailing = _TRAILING.search(text, max(start, stop - _TRAILING_LENGTH), stop)
    return trailing.start() if trailing else stop


def _has_value(text: str, match: re.Match[str], name: str) -> bool:
    """Whether the value of a secret name follows, and not a sentence or a part of a file's name."""
    plain, sign = normalize(name), match["sign"].strip()
    quoted = bool(match["quote"] or match["open"])
    if sign == ",":
        return quoted and plain in HEADERS
    if sign == ":" and not quoted:
        return (
            plain in HEADERS
            or plain in PASSWORDS
            or "-" in name
            or _FIGURE.match(text, match.end()) is not None
        )
    if plain in AMBIGUOUS and not quoted:
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
        word = before[_last_space(before) :]
        in_name = "?" in word.lstrip("?\"'(")
        return not in_name or _REQUEST.search(before[: len(before) - len(word)]) is not None
    return True


def _last_space(text: str) -> int:
    """The position behind the last space; 0 if there is none."""
    return max((match.end() for match in _SPACE.finditer(text)), default=0)
