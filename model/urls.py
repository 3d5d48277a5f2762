"""URLs in messages and records."""

import re


def mask(text: str) -> str:
    """`text`, a URL or a message with some, without what may be secret.

    That is user and password, and the query of web addresses (`?X-Amz-Signature=...`); names of
    files and of S3's objects may hold question marks of their own.
    """
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)
