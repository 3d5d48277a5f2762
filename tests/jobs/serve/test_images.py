"""Images by address: only from where they may be, and never without an end."""

import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from jobs.serve.engine.engine import Engine
from jobs.serve.http.images import ImageFailed, bytes_of_data
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.files import open_location
from pipeline.storage.image_hosts import ImageHosts
from tests.pipeline.storage.test_image_hosts import Answers
from tests.support.serving import MODEL, scene_file, serving
from tests.support.web import QuietHandler, VersionedFile, served

QUICK: dict[str, Any] = {"download_seconds": 1.0, "stall_seconds": 0.5, "max_image_bytes": 1 << 20}


@pytest.mark.parametrize("rest", [";", ";base64", "a", "image/png;base64;"])
def test_a_data_address_without_a_comma_costs_no_memory(rest: str) -> None:
    address = "data:" + rest * (5_000_000 // len(rest))
    tracemalloc.start()
    try:
        with pytest.raises(ImageFailed) as raised:
            bytes_of_data(address, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # it took 170 times its size
    finally:
        tracemalloc.stop()
    assert raised.value.code == "bad_address"


@pytest.mark.parametrize("head", ["data:;base64", "DATA:image/PNG;x=1;BASE64", "data:a;b=c;base64"])
def test_heads_of_data_addresses(head: str) -> None:
    assert bytes_of_data(f"{head},AAEC", 3) == b"\0\1\2"
    for bad in (f"{head} ,AAEC", f"{head}AAEC", f"x{head},AAEC", head.replace(";", ",")):
        with pytest.raises(ImageFailed):
            bytes_of_data(bad, 3)


def ask(address: str, *images: str) -> list[dict[str, Any]]:
    """What the endpoint answers about each image."""
    body = {"model": MODEL, "images": images}
    answer = requests.post(f"{address}/v1/detections", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def code_of(answer: dict[str, Any]) -> str:
    return str(answer["error"]["code"])


def allowing(*hosts: str, **options: Any) -> ApiSettings:
    return ApiSettings(hosts=ImageHosts.of(hosts), **{**QUICK, **options})


def test_an_image_of_an_allowed_host_is_that_of_a_data_address(engine: Engine) -> None:
    from tests.support.serving import data_uri

    file = scene_file()
    with VersionedFile(file).served() as web, serving(allowing("127.0.0.1"), engine) as address:
        by_web, by_data = ask(address, f"{web}/a%27b.jpg?x=%3A", data_uri(file))
    assert by_web["status"] == "ok" and by_web["detections"] == by_data["detections"] != []


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 [::1] [::ffff:127.0.0.1] 0x7f000001 2130706433 127.1 0177.0.0.1 localhost "
    "localhost. user:secret@127.0.0.1 127.0.0.1\\@8.8.8.8".split(),
)
def test_the_servers_own_machine_is_not_reached(endpoint: str, host: str) -> None:
    asked: list[int] = []
    with VersionedFile(scene_file(), before_body=lambda: asked.append(1)).served() as web:
        (answer,) = ask(endpoint, f"http://{host}:{web.rpartition(':')[2]}/a.jpg")
    assert answer["status"] == "failed" and not asked
    assert "secret" not in answer["error"]["message"]


@pytest.mark.parametrize(
    "address",
    "http://169.254.169.254/latest/meta-data/ http://10.0.0.1/ file:///etc/passwd /etc/passwd "
    "s3://bucket/a.jpg gs://bucket/a.jpg ftp://example.com/a.jpg gopher://127.0.0.1/ http:// "
    "hf://datasets/a/b.jpg zip://a.jpg::http://127.0.0.1/".split(),
)
def test_other_places_are_not_read(endpoint: str, address: str) -> None:
    (answer,) = ask(endpoint, address)
    assert code_of(answer) in ("address_not_allowed", "unreadable"), answer


def test_a_name_that_leads_to_loopback_is_refused(engine: Engine) -> None:
    asked: list[int] = []
    file = VersionedFile(scene_file(), before_body=lambda: asked.append(1))
    with (
        file.served() as web,
        serving(ApiSettings(**QUICK), engine, resolver=Answers("127.0.0.1")) as address,
    ):
        (answer,) = ask(address, f"http://images.example:{web.rpartition(':')[2]}/a.jpg")
    assert code_of(answer) == "address_not_allowed" and not asked


def test_a_name_that_changes_its_address_is_refused(engine: Engine) -> None:
    asked: list[int] = []
    file = VersionedFile(scene_file(), before_body=lambda: asked.append(1))
    resolver = Answers("8.8.8.8", "127.0.0.1")
    with file.served() as web, serving(ApiSettings(**QUICK), engine, resolver=resolver) as address:
        url = f"http://images.example:{web.rpartition(':')[2]}/a.jpg"
        codes = [code_of(answer) for answer in ask(address, url) + ask(address, url)]
    assert set(codes) <= {"address_not_allowed", "unreadable", "timed_out"} and not asked


class Redirect(QuietHandler):
    """Leads to `target`, or in a circle."""

    target = ""

    def do_GET(self) -> None:
        self.send_response_only(302)
        self.send_header("Location", self.target or self.path + "x")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_redirects_are_followed_only_to_where_they_may_lead(engine: Engine) -> None:
    asked: list[int] = []
    inner = VersionedFile(scene_file(), before_body=lambda: asked.append(1))
    with inner.served() as private, served(Redirect) as web:
        with serving(allowing(web.removeprefix("http://")), engine) as address:
            Redirect.target = f"{private}/a.jpg"
            (refused,) = ask(address, f"{web}/a.jpg")
            Redirect.target = "file:///etc/passwd"
            (of_file,) = ask(address, f"{web}/a.jpg")
            Redirect.target = ""
            (circle,) = ask(address, f"{web}/a.jpg")
        assert code_of(refused) == "address_not_allowed" and not asked
        assert code_of(of_file) == "unreadable" and "passwd" not in str(of_file["detections"])
        assert code_of(circle) == "unreadable"
        with serving(allowing("127.0.0.1"), engine) as address:
            Redirect.target = f"{private}/a.jpg"
            (followed,) = ask(address, f"{web}/a.jpg")
        assert followed["status"] == "ok"


class Endless(QuietHandler):
    """Sends a body without an end, as fast as it can or a byte at a time."""

    pause = 0.0
    piece = b"\xff" * 65536

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            self.wfile.write(self.piece)
            time.sleep(self.pause)


@pytest.mark.parametrize(
    ("pause", "piece", "code"),
    [(0.0, b"\xff" * 65536, "too_large"), (0.1, b"\xff", "timed_out"), (3.0, b"", "timed_out")],
    ids=["endless", "dripping", "silent"],
)
def test_a_body_without_an_end_is_cut_off(
    engine: Engine, pause: float, piece: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endless, "pause", pause)
    monkeypatch.setattr(Endless, "piece", piece)
    with served(Endless) as web, serving(allowing("127.0.0.1"), engine) as address:
        began = time.monotonic()
        (answer,) = ask(address, f"{web}/a.jpg")
        assert time.monotonic() - began < 2.5
    assert code_of(answer) in (code, "unreadable") and answer["status"] == "failed"


def test_an_image_that_is_announced_as_too_large_is_not_read(engine: Engine) -> None:
    file = VersionedFile(b"x", {"Content-Length": str(1 << 40)}, length=False)
    with file.served() as web, serving(allowing("127.0.0.1"), engine) as address:
        (answer,) = ask(address, web)
    assert code_of(answer) == "too_large"


def test_a_compressed_bomb_is_not_unpacked(engine: Engine) -> None:
    import gzip

    bomb = gzip.compress(bytes(64 << 20))
    file = VersionedFile(bomb, {"Content-Encoding": "gzip"})
    with file.served() as web, serving(allowing("127.0.0.1"), engine) as address:
        (answer,) = ask(address, web)
    assert code_of(answer) == "undecodable"


def test_an_image_of_too_many_pixels_is_refused(endpoint: str) -> None:
    import io

    from PIL import Image

    from tests.support.serving import data_uri

    file = io.BytesIO()
    Image.new("1", (30000, 30000)).save(file, "PNG")
    (answer,) = ask(endpoint, data_uri(file.getvalue(), "image/png"))
    assert code_of(answer) == "too_many_pixels"
    assert (answer["width"], answer["height"]) == (30000, 30000)


@pytest.mark.slow
def test_downloads_at_a_time_are_bounded(engine: Engine) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def count() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    with (
        VersionedFile(scene_file(), before_body=count).served() as web,
        serving(allowing("127.0.0.1", downloads=3, download_seconds=20.0), engine) as address,
    ):
        answers = ask(address, *(f"{web}/{n}.jpg" for n in range(12)))
    assert [one["status"] for one in answers] == ["ok"] * 12
    assert 1 <= most <= 3


def test_slow_addresses_of_one_key_keep_no_other_waiting(engine: Engine, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in "ab")
    settings = replace(allowing("127.0.0.1", downloads=2, download_seconds=20.0), keys=keys)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(30)

    def detect(key: str, *images: str) -> requests.Response:
        body, headers = {"model": MODEL, "images": images}, {"authorization": f"Bearer {key}"}
        return requests.post(f"{address}/v1/detections", json=body, headers=headers, timeout=60)

    with (
        VersionedFile(scene_file(), before_body=wait).served() as slow,
        VersionedFile(scene_file()).served() as quick,
        serving(settings, engine) as address,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(detect, ours, *(f"{slow}/{n}.jpg" for n in range(6)))
        try:
            assert begun.wait(30)
            answer = detect(theirs, f"{quick}/a.jpg").json()
            assert [one["status"] for one in answer["data"]] == ["ok"] and not waiting.done()
        finally:
            go_on.set()
        assert waiting.result().status_code == 200


def test_downloads_of_a_request_that_was_refused_hold_nothing(engine: Engine) -> None:
    """One image is too much for what the server may hold while others still come."""
    file = scene_file()
    slowly = VersionedFile(file, before_body=lambda: time.sleep(random.uniform(0, 0.2)))
    settings = allowing("127.0.0.1", held_bytes=3 * len(file), download_seconds=20.0)
    with slowly.served() as web, serving(settings, engine) as address:
        images = [f"{web}/{number}.jpg" for number in range(16)]
        for _ in range(3):
            body = {"model": MODEL, "images": images}
            answer = requests.post(f"{address}/v1/detections", json=body, timeout=30)
            assert answer.status_code == 503
        time.sleep(0.5)
        assert [one["status"] for one in ask(address, images[0])] == ["ok"]


def test_downloads_of_a_client_that_hangs_up_end(engine: Engine) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        begun.release()
        go_on.wait(60)

    settings = allowing("127.0.0.1", downloads=2, download_seconds=50.0, stall_seconds=50.0)
    with (
        VersionedFile(scene_file(), before_body=wait).served() as slow,
        VersionedFile(scene_file()).served() as quick,
        serving(settings, engine) as address,
    ):
        try:
            body = {"model": MODEL, "images": [f"{slow}/{number}.jpg" for number in range(6)]}
            with pytest.raises(requests.Timeout):
                requests.post(f"{address}/v1/detections", json=body, timeout=(30, 1))
            assert all(begun.acquire(timeout=30) for _ in range(2))
            # The downloads of this client, who has no key, had both places.
            assert [one["status"] for one in ask(address, f"{quick}/a.jpg")] == ["ok"]
            assert not begun.acquire(blocking=False)
            line = 'method="POST",route="/v1/detections",status="499"'
            assert line in requests.get(f"{address}/metrics", timeout=20).text
        finally:
            go_on.set()


def test_a_missing_image_says_so_without_secrets(engine: Engine) -> None:
    with (
        VersionedFile(status=404).served() as web,
        serving(allowing("127.0.0.1"), engine) as address,
    ):
        secret = web.replace("://", "://me:hunter2@")
        (answer,) = ask(address, f"{secret}/a.jpg?X-Amz-Signature=0123456789abcdef")
    assert code_of(answer) == "unreadable" and "404" in answer["error"]["message"]
    assert "hunter2" not in str(answer) and "0123456789abcdef" not in str(answer)


def test_images_of_an_allowed_bucket(engine: Engine, bucket: str) -> None:
    fs, path = open_location(f"{bucket}/open/a.jpg", "the image")
    fs.pipe_file(path, scene_file())
    fs.pipe_file(path.replace("/open/", "/closed/"), scene_file())
    with serving(allowing(f"{bucket}/open", download_seconds=10.0), engine) as address:
        names = ("open/a.jpg", "open/missing.jpg", "closed/a.jpg", "open/../closed/a.jpg")
        found = ask(address, *(f"{bucket}/{name}" for name in names))
    assert found[0]["status"] == "ok" and found[0]["detections"]
    codes = [code_of(one) for one in found[1:]]
    assert codes == ["unreadable", "address_not_allowed", "address_not_allowed"]
