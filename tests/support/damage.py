"""Ways to damage the bytes of a file, and what the code under test logs about them."""

from collections.abc import Callable

import pytest

Damage = Callable[[bytes], bytes]


def warnings_of(module: str, patch: pytest.MonkeyPatch) -> list[str]:
    """Collect what one of our modules warns of from now on; caplog sees nothing once Ray starts."""
    logged: list[str] = []
    patch.setattr(f"{module}.log.warning", lambda text, *arguments: logged.append(text % arguments))
    return logged


def flip(share: float, bit: int) -> Damage:
    """Return a damage that flips one bit of the byte at this share of the file."""

    def damage(data: bytes) -> bytes:
        position = round(share * (len(data) - 1))
        return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]

    return damage


DAMAGES: dict[str, Damage] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "[]": lambda data: b"[]",
    **{f"bit {bit} at {share}": flip(share, bit) for share, bit in zip(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), (5, 0, 7, 1, 3, 2, 4), strict=True)},
}  # fmt: skip
