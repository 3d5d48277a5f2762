"""Wrong options of `serve` are refused in one line, before anything starts."""

import socket
from typing import Any

import pytest

from jobs.cli import main
from jobs.label.log.lines import without_time
from jobs.serve.serve import free_port, greeting
from jobs.serve.settings.options import ServeOptions, is_loopback
from pipeline.stages.tiling import MAX_PIXELS
from pipeline.storage.errors import InputError


@pytest.mark.parametrize(
    "options, told",
    [
        ({"score_threshold": 1.0}, "--score-threshold"),
        ({"port": 70000}, "--port 70000"),
        ({"usd_per_1000_images": -1.0}, "--usd-per-1000-images"),
        ({"max_images": 0}, "--max-images"),
        ({"batches": "b", "batch_detectors": 0}, "--batch-detectors must be"),
        ({"batch_detectors": 1}, "--batch-detectors is for --batches"),
        ({"max_request_pixels": 1000}, "--max-request-pixels 1000 would refuse images of"),
        ({"max_queue": 8}, "--max-queue 8 would refuse every request of --max-images 64"),
        ({"host": "0.0.0.0"}, "give --keys"),
        ({"host": "::"}, "give --keys"),
        ({"host": "192.168.1.4"}, "give --keys"),
        ({"host": "gpu.example"}, "give --keys"),
        ({"detach": True}, "--detach is for a cluster"),
        ({"status": True}, "--status is for a cluster"),
        ({"stop": True}, "--stop is for a cluster"),
        ({"num_gpus": "0"}, "--num-gpus 0"),
        ({"allow_image_hosts": ("http://x/",)}, "give a host"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ServeOptions(model="shapes-tiny", **options).check()


def test_usual_values_pass() -> None:
    ServeOptions(model="shapes-tiny").check()
    ServeOptions(model="shapes-tiny", host="0.0.0.0", keys="keys.json").check()
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))


def test_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "shapes-tinny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert without_time(line) != line, "a log has the time"


def test_missing_keys_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    words = [
        "serve",
        "--model",
        "shapes-tiny",
        "--port",
        "0",
        "--keys",
        str(tmp_path / "none.json"),
    ]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.json" in line


def test_port_that_is_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: cannot listen there"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0


def test_host_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match="cannot listen there"):
        free_port("203.0.113.7", 0)


def test_greeting_has_a_line_that_asks() -> None:
    told = greeting(ServeOptions(host="::1", port=8001, keys="keys.json"))
    assert "curl http://[::1]:8001/v1/models -H" in told


def test_images_may_have_as_many_pixels_as_those_of_label() -> None:
    assert ServeOptions().max_pixels == MAX_PIXELS
