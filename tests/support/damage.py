"""What can happen to the bytes of a file."""

from collections.abc import Callable

import pytest

Damage = Callable[[bytes], bytes]


def warnings_of(module: str, patch: pytest.MonkeyPatch) -> list[str]:
    """What a module of ours logs from now on: caplog hears nothing once Ray has been started."""
    logged: list[str] = []
    patch.setattr(f"{module}.log.warning", lambda text, *given: logged.append(text % given))
    return logged


def flip(share: float, bit: int) -> Damage:
    """One bit of the byte that lies behind this share of the file."""

    def damage(data: bytes) -> bytes:
        place = round(share * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    return damage


DAMAGES: dict[str, Damage] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "[]": lambda data: b"[]",
    **{f"bit {bit} at {share}": flip(share, bit) for share, bit in zip(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), (5, 0, 7, 1, 3, 2, 4), strict=True)},
}  # fmt: skip
