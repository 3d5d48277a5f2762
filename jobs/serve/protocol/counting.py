"""Count the values of a JSON text before it is parsed: parsing makes an object of each."""

import numpy as np

PIECE = 1 << 20  # bytes that are looked at at once
_COMMA, _QUOTE = ord(","), ord('"')
_OPENING = (ord("["), ord("{"))


def has_more_values(text: bytes, most: int) -> bool:
    """Whether a JSON text in UTF-8 surely has more than `most` values, however they are nested.

    A text of which this is not said has at most two times as many, and one more: each comma
    between values stands before a value, and each bracket that opens is a value, but the first.
    """
    # Signs within texts count here too. Images in base64 have next to none.
    if text.count(b",") <= most and text.count(b"[") + text.count(b"{") <= most + 1:
        return False
    commas = opening = 0
    in_string, rest = False, b""
    for start in range(0, len(text), PIECE):
        # Without pairs of backslashes, a backslash before a quote is what keeps a string open.
        piece = (rest + text[start : start + PIECE]).replace(b"\\\\", b"")
        rest = b"\\" if piece.endswith(b"\\") else b""
        signs = np.frombuffer(piece.removesuffix(b"\\").replace(b'\\"', b""), np.uint8)
        quotes = signs == _QUOTE
        # The number of quotes before each sign, of which only the last bit matters.
        outside = (np.cumsum(quotes, dtype=np.uint8) & 1) == in_string
        commas += int(np.count_nonzero(outside & (signs == _COMMA)))
        for sign in _OPENING:
            opening += int(np.count_nonzero(outside & (signs == sign)))
        if commas > most or opening > most + 1:
            return True
        in_string ^= bool(np.count_nonzero(quotes) & 1)
    return False
