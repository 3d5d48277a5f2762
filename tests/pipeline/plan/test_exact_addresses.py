"""Web addresses are sent byte for byte, in all requests and through redirects."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.plan.plan import plan_shards
from pipeline.storage.files import open_location, open_object
from pipeline.storage.urls import identity
from pipeline.storage.web import sendable
from tests.support.samples import encoded, jpeg
from tests.support.web import QuietHandler, served


class Exact(QuietHandler):
    """Knows objects by the bytes of their request, as a server that checks signatures does."""

    objects: dict[str, bytes]
    redirects: dict[str, str]
    asked: list[str]

    def do_HEAD(self) -> None:
        target = self.requestline.split(" ", 1)[1].rsplit(" ", 1)[0]
        self.asked.append(target)
        body = self.objects.get(target)
        if target in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[target])
        else:
            self.send_response(403 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    do_GET = do_HEAD


@pytest.fixture
def exact() -> Iterator[tuple[str, type[Exact]]]:
    handler = type("Handler", (Exact,), {"objects": {}, "redirects": {}, "asked": []})
    with served(handler) as address:
        yield address, handler


LEGAL = [
    "/proxy/https%3A%2F%2Fhost%2Fa.jpg",
    "/it%27s.jpg",
    "/it's.jpg",
    "/home/%7Euser/a.jpg",
    "/home/~user/b.jpg",
    "/a%2Bb.jpg",
    "/a+b.jpg",
    "/a%20b.jpg",
    "/a%2520b.jpg",
    "/a%25b.jpg",
    "/a;v=1.jpg",
    "/a[1].jpg",
    "/a%5B1%5D.jpg",
    "/%e9t%c3%a9.jpg",
    "/a//b/./c/../d.jpg",
    "/q.jpg?u=https%3A%2F%2Fh&v=%27~+%20/?:@!$()*,;=",
    "/q.jpg?a=1&&b",
    "/s.jpg?X-Amz-Signature=ab%2Fcd%3D%3D&X-Amz-Date=1",
    "/?id=5",
]
QUOTED = {
    "/a b.jpg": "/a%20b.jpg",
    "/é.jpg?q=ü x": "/%C3%A9.jpg?q=%C3%BC%20x",
    "/100%.jpg": "/100%25.jpg",
    "/a%zz.jpg": "/a%25zz.jpg",
    '/<"{|}^`\\>.jpg': "/%3C%22%7B%7C%7D%5E%60%5C%3E.jpg",
    "/a%20b é.jpg": "/a%20b%20%C3%A9.jpg",
    "/a.jpg#part": "/a.jpg",
}


def test_listed_addresses_are_sent_as_they_are(
    exact: tuple[str, type[Exact]], tmp_path: Path
) -> None:
    """Planning and reading send the same bytes. The image is named as the list names it."""
    base, server = exact
    server.objects = {path: jpeg(number) for number, path in enumerate(LEGAL)}
    (tmp_path / "list.txt").write_text("\n".join(base + path for path in LEGAL))
    plan = plan_shards(str(tmp_path / "list.txt")).shards
    rows = [row for shard in plan for row in encoded(shard)]
    assert [row["status"] for row in rows] == ["ok"] * len(LEGAL)
    assert set(server.asked) == set(LEGAL)
    assert [row["uri"] for row in rows] == [identity(base + path) for path in LEGAL]


def test_only_what_no_address_may_hold_is_encoded(exact: tuple[str, type[Exact]]) -> None:
    base, server = exact
    for given, sent in QUOTED.items():
        server.objects = {sent: b"content"}
        fs, path = open_location(base + given, "object")
        assert fs.read_start(path, 100) == fs.read_whole(path, 100) == b"content"
        assert fs.info(path)["size"] == 7
        with open_object(fs, path) as file:
            assert file.read() == b"content"
        assert fs.cat_file(path, start=0, end=9) == b"content"
        assert set(server.asked) == {sent}
        server.asked.clear()


def test_redirects_are_followed_byte_for_byte(exact: tuple[str, type[Exact]]) -> None:
    base, server = exact
    relative = [path for path in LEGAL if "/../" not in path]  # a reference loses its dots
    for target in [*relative, *(base + path for path in LEGAL)]:
        path = target.removeprefix(base)
        server.objects = {path: b"content"}
        server.redirects = {"/start": target}
        fs, start = open_location(f"{base}/start", "object")
        assert fs.read_whole(start, 100) == b"content"
        assert fs.info(start)["size"] == 7
        assert set(server.asked) == {"/start", path}
        server.asked.clear()


def test_redirects_to_what_no_address_may_hold_are_encoded(
    exact: tuple[str, type[Exact]],
) -> None:
    base, server = exact
    server.objects = {"/a%20b%FF.jpg": b"content"}
    server.redirects = {"/start": "/a b\xff.jpg"}
    fs, start = open_location(f"{base}/start", "object")
    assert fs.read_whole(start, 100) == b"content"


def test_hosts_have_one_spelling() -> None:
    assert str(sendable("http://b\xfccher.example:8080/%41")) == (
        "http://xn--bcher-kva.example:8080/%41"
    )
    assert sendable("https://user:p%40ss@h/a").password == "p@ss"
    assert sendable("http://h?id=1").raw_path_qs == "/?id=1"
    assert sendable("http://h").raw_path_qs == "/"
    with pytest.raises(ValueError, match="no address"):
        sendable("h/a")
