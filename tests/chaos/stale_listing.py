"""Listings of S3 that lag behind: they lack what is new, and still have what was deleted."""

import re
from urllib.parse import unquote

ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
KEY = re.compile(rb"<Key>(.*?)</Key>", re.DOTALL)


class StaleListing:
    """What listings say, as long as they are `stuck` at the state that they had when it began."""

    def __init__(self) -> None:
        self.stuck = False
        self.created: set[str] = set()
        self.deleted: set[str] = set()
        self.entries: dict[str, bytes] = {}  # as they were listed, by key

    def note(self, method: str, path: str, body: bytes) -> None:
        """Hear of a request that took effect."""
        if not self.stuck:
            return
        key = unquote(path).strip("/").partition("/")[2]
        if method == "PUT":
            self.created.add(key)
        elif method == "DELETE":
            self.deleted.add(key)
        elif method == "POST":  # a list of keys to delete
            self.deleted |= {unquote(found.decode()) for found in KEY.findall(body)}

    def listing(self, answer: bytes, prefix: str) -> bytes:
        """The answer to ListObjectsV2, without what is new and with what was deleted."""
        found = {_key(entry): entry for entry in ENTRY.findall(answer)}
        if not self.stuck:
            self.entries |= found
            return answer
        old = {key: entry for key, entry in found.items() if key not in self.created}
        gone = {key for key in self.deleted & self.entries.keys() if key.startswith(prefix)}
        old |= {key: self.entries[key] for key in gone - self.created}
        content = b"".join(entry for _, entry in sorted(old.items()))
        answer = re.sub(rb"<KeyCount>.*?</KeyCount>", b"<KeyCount>%d</KeyCount>" % len(old), answer)
        start = answer.find(b"<Contents>")
        if start < 0:
            return answer.replace(b"</ListBucketResult>", content + b"</ListBucketResult>")
        return answer[:start] + content + ENTRY.sub(b"", answer[start:])


def _key(entry: bytes) -> str:
    found = KEY.search(entry)
    assert found is not None
    return unquote(found[1].decode())
