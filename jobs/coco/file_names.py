"""File names of annotation files, which come from other machines and other systems."""

import unicodedata


def portable_name(name: str) -> str:
    """A file name in the one form in which names are compared: with slashes, composed letters, and
    without `./`. Windows writes backslashes, and macOS takes accents off their letters.
    """
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
