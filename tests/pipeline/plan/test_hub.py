"""INPUT on the Hugging Face hub, as far as a small imitation of its routes behaves like it.

There is no emulator of the hub, and tests reach no network.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.samples import jpeg, write_tar
from tests.support.web import QuietHandler, served

ROOT = Path(__file__).parents[3]
LABEL = """
import json, sys
from pipeline.plan.plan import plan_shards
from tests.support.samples import encoded
rows = [row for shard in plan_shards(sys.argv[1]).shards for row in encoded(shard)]
names = ("image_id", "etag", "status")
print(json.dumps([[*(row[name] for name in names), len(row["encoded"])] for row in rows]))
"""


class Hub(QuietHandler):
    """A repository of datasets, `user/lake`, at the revision `main`."""

    def __init__(self, files: dict[str, bytes], *arguments: object):
        self.files = files
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        tree, resolve = "/api/datasets/user/lake/tree/main", "/datasets/user/lake/resolve/main/"
        if path == "/api/datasets/user/lake":
            self.answer({"id": "user/lake", "sha": "a" * 40})
        elif path.startswith(tree):
            self.answer([self.entry(name) for name in sorted(self.files)])
        elif path.startswith(resolve):
            self.send(self.files[path.removeprefix(resolve)])
        else:
            self.send_error(404)

    def entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": f"{len(content):040}"}

    def answer(self, document: object) -> None:
        self.send(json.dumps(document).encode())

    def send(self, content: bytes) -> None:
        first, last = 0, len(content) - 1
        if asked := self.headers["Range"]:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.mark.slow
def test_images_and_tars_on_the_hub_are_read(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {"b.jpg": jpeg(1), "c.jpg": jpeg(2)}).read_bytes()
    files = {"a.jpg": jpeg(), "README.md": b"# lake", "t.tar": tar}
    handler: Callable[..., QuietHandler] = partial(Hub, files)
    with served(handler) as address:
        found = subprocess.run(
            [sys.executable, "-c", LABEL, "hf://datasets/user/lake"],
            env={
                **os.environ,
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "0",
            },
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
    assert found.returncode == 0, found.stderr.decode()
    base = "hf://datasets/user/lake"
    assert sorted(json.loads(found.stdout)) == [
        [f"{base}/a.jpg", f"{len(jpeg()):040}", "ok", len(jpeg())],
        [f"{base}/t.tar#b", f"{len(tar):040}", "ok", len(jpeg(1))],
        [f"{base}/t.tar#c", f"{len(tar):040}", "ok", len(jpeg(2))],
    ]
