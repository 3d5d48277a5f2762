"""File names of annotation files, which come from other machines and other systems."""

import unicodedata


def portable_name(name: str) -> str:
    """A file name as `label` would write it: with slashes, and with letters in composed form.

    Windows writes backslashes; macOS takes accents off their letters.
    """
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
