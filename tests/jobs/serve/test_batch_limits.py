"""What bounds the images that the addresses of a batch name."""

import io
from pathlib import Path

import pytest
from PIL import Image

from jobs.serve.engine.engine import Engine
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.image_hosts import ImageHosts
from tests.support.batching import batching, client_of, create, lines_of, request, wait_for
from tests.support.web import served_files

pytestmark = pytest.mark.slow


def test_limits_of_requests_hold_in_batches(tmp_path: Path, engine: Engine) -> None:
    """Addresses get the codes of requests: too many bytes, too many pixels, a host of its own."""
    for name, size, padding in (("good", 64, 0), ("heavy", 64, 20_000), ("wide", 200, 0)):
        file = io.BytesIO()
        Image.new("RGB", (size, size)).save(file, "JPEG")
        (tmp_path / f"{name}.jpg").write_bytes(file.getvalue() + bytes(padding))
    with served_files(tmp_path) as web:
        hosts = ImageHosts.of([web.removeprefix("http://")])
        settings = ApiSettings(hosts=hosts, max_image_bytes=20_000, max_pixels=30_000)
        names = ["good.jpg", "heavy.jpg", "wide.jpg"]
        addresses = [*(f"{web}/{name}" for name in names), web.replace("127.0.0.1", "localhost")]
        with batching(str(tmp_path / "batches"), engine, settings) as address:
            client = client_of(address)
            batch = wait_for(client, create(client, [request("a", addresses)]))
            answers = lines_of(client, batch.output_file_id)
    images = answers["a"]["response"]["body"]["data"]
    codes = [image["error"] and image["error"]["code"] for image in images]
    assert codes == [None, "too_large", "too_many_pixels", "address_not_allowed"]
    assert "20000" in images[1]["error"]["message"] and "30000" in images[2]["error"]["message"]
