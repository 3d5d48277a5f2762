"""Detectors of transformers give what its own pipeline gives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from model.description import Load
from model.detectors import describe, load, settled
from model.errors import CheckpointError, CheckpointUnavailable, UnknownName
from model.from_hub import HubDetector
from model.image_detector import OneByOne
from tests.support.detectors import NAMES, save_detector, yolos
from tests.support.parameters import others_slow

SIDE = {"height": 64, "width": 96}


def rt_detr() -> tuple[Any, Any]:
    trunk = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=trunk, id2label=NAMES, encoder_hidden_dim=32, d_model=32, num_queries=12,
        encoder_in_channels=[16, 16, 16], encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_in_channels=[32, 32, 32],
        num_denoising=0, use_timm_backbone=False, use_pretrained_backbone=False,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor(
        size=SIDE
    )


def d_fine() -> tuple[Any, Any]:
    trunk = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 16], stage_mid_channels=[8] * 4,
        stage_out_channels=[16, 16, 16, 16], stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4,
        hidden_sizes=[16, 16, 16, 16], depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.DFineConfig(
        backbone_config=trunk, id2label=NAMES, encoder_hidden_dim=32, d_model=32, num_queries=12,
        encoder_in_channels=[16, 16, 16], encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_in_channels=[32, 32, 32],
        num_denoising=0,
    )  # fmt: skip
    return transformers.DFineForObjectDetection(config), transformers.RTDetrImageProcessor(
        size=SIDE
    )


def conditional_detr() -> tuple[Any, Any]:
    trunk = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = transformers.ConditionalDetrConfig(
        backbone_config=trunk, id2label=NAMES, d_model=32, num_queries=12, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
        decoder_attention_heads=4, use_timm_backbone=False, use_pretrained_backbone=False,
    )  # fmt: skip
    return (
        transformers.ConditionalDetrForObjectDetection(config),
        transformers.ConditionalDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
    )


ROOT = Path(__file__).parents[2]
Make = Callable[[], tuple[Any, Any]]


def saved(make: Make, folder: Path) -> Path:
    save_detector(*make(), folder)
    return folder


@pytest.mark.parametrize("make", others_slow([rt_detr, d_fine, yolos, conditional_detr]))
def test_photos_get_what_the_pipeline_of_transformers_gives(
    make: Make, tmp_path: Path, testdata: Path
) -> None:
    folder = saved(make, tmp_path / "net")
    detector = load(f"hf:{folder}", Load(None, None, "cpu", "fp32"))
    pipeline = transformers.pipeline("object-detection", str(folder), device="cpu")
    photos = sorted((testdata / "coco" / "images").rglob("*.jpg"))
    assert len(photos) == 55
    seen: set[float] = set()
    for photo in photos[::6]:
        image = Image.open(photo).convert("RGB")
        pixels = torch.from_numpy(np.array(image))[None]
        found = detector.submit(pixels, None, torch.tensor([pixels.shape[1:3]])).result()
        expected = sorted(pipeline(image, threshold=0.0), key=lambda one: -one["score"])
        assert len(expected) == found.scores.shape[1] > 5
        assert found.scores[0].tolist() == pytest.approx([one["score"] for one in expected])
        names = [detector.labels[label] or "N/A" for label in found.labels[0]]
        assert names == [one["label"] for one in expected]
        width, height = image.size
        for box, one in zip(found.boxes[0].tolist(), expected, strict=True):
            whole = [one["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]
            limits = [width, height, width, height]
            inside = [min(max(0, side), limit) for side, limit in zip(whole, limits, strict=True)]
            assert [int(side) for side in box] == pytest.approx(inside, abs=1)
        seen.update(found.scores[0].tolist())
    assert len(seen) > 12  # an answer has so many; photos differ


def test_a_description_names_classes_and_changes_with_the_files(tmp_path: Path) -> None:
    folder = saved(yolos, tmp_path / "net")
    first = describe(f"hf:{folder}", None)
    assert first.labels == ("", "cat", "dog")
    assert first == describe(f"hf:{folder}", None)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert 0.9 * stored < first.weight_bytes <= stored  # the file is in fp32, and has a header
    settings = folder / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("96", "128"))
    assert describe(f"hf:{folder}", None).weights != first.weights
    with pytest.raises(CheckpointError, match="replaced meanwhile"):
        load(f"hf:{folder}", Load(None, first.weights, "cpu", "fp32"))


def test_sixteen_bits_are_near(tmp_path: Path) -> None:
    folder = saved(yolos, tmp_path / "net")
    pixels = torch.randint(0, 256, (1, 48, 80, 3), dtype=torch.uint8)
    sizes = torch.tensor([[48, 80]])
    exact, near = (
        load(f"hf:{folder}", Load(None, None, "cpu", precision)).submit(pixels, None, sizes)
        for precision in ("fp32", "bf16")
    )
    scores = near.result().scores
    assert not torch.equal(scores, exact.result().scores)
    assert scores == pytest.approx(exact.result().scores, abs=0.05)


def test_numbers_that_are_not_finite_fail_the_image(tmp_path: Path) -> None:
    """transformers drops boxes whose score is NaN."""
    net, processor = yolos()
    save_detector(net, processor, tmp_path / "net")
    detector = load(f"hf:{tmp_path / 'net'}", Load(None, None, "cpu", "fp32"))
    assert isinstance(detector, OneByOne) and isinstance(detector.detector, HubDetector)
    with torch.no_grad():
        detector.detector.net.get_parameter("class_labels_classifier.layers.2.bias")[0] = torch.nan
    pixels = torch.zeros(1, 48, 80, 3, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="output is not finite"):
        detector.submit(pixels, None, torch.tensor([[48, 80]]))


@pytest.mark.slow
def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    """Although somebody says yes to the question that transformers asks by default."""
    folder = saved(yolos, tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "stranger"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForObjectDetection": "evil.Net"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass")
    script = f"from model.detectors import describe; describe('hf:{folder}', None)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], input="y\n" * 9, text=True, capture_output=True,
        env=environment, check=False,
    )  # fmt: skip
    assert "is no detector of transformers" in done.stderr and "[y/N]" not in done.stdout
    assert not (tmp_path / "ran").exists()


def test_the_name_of_a_folder_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(yolos, tmp_path / "some" / "net")
    monkeypatch.chdir(tmp_path)
    assert settled("hf:some/net") == f"hf:{(tmp_path / 'some' / 'net').resolve()}"
    assert settled("hf:other/net") == "hf:other/net" and settled("detr") == "detr"
    for place in ("/no/such/folder", "./net", "../some/net", "net"):
        with pytest.raises(CheckpointError, match=r"there is no folder .*no id of the hub"):
            describe(f"hf:{place}", None)


def test_folders_that_are_no_detector_are_refused(tmp_path: Path) -> None:
    folder = saved(yolos, tmp_path / "net")
    with pytest.raises(UnknownName, match="has its own weights in it"):
        describe(f"hf:{folder}", "random")
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    with pytest.raises(CheckpointError, match="has no image processor"):
        describe(f"hf:{folder}", None)
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    config = json.loads((folder / "config.json").read_text())
    *names, (_, last) = config["id2label"].items()
    many = {**config, "id2label": {**dict(names), "1000000000": last}}
    (folder / "config.json").write_text(json.dumps(many))
    with pytest.raises(CheckpointError, match=r"names a class 1000000000 .*numbers go up to 65535"):
        describe(f"hf:{folder}", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no weights as \.safetensors"):
        describe(f"hf:{folder}", None)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is no detector of transformers"):
        describe(f"hf:{folder}", None)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        describe(f"hf:{folder}", None)
    with pytest.raises((CheckpointUnavailable, CheckpointError), match="hf:nobody/nothing"):
        describe("hf:nobody/nothing", None)


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no detector of transformers"):
        describe(f"hf:{tmp_path}", None)


def test_workers_load_the_revision_that_was_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub has a newer one meanwhile."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("model.from_hub.is_hub_resolvable", lambda: False)
    cached = tmp_path / "models--someone--yolos"
    (cached / "refs").mkdir(parents=True)
    for commit, make in (("a" * 40, yolos), ("b" * 40, rt_detr)):
        save_detector(*make(), cached / "snapshots" / commit)
    (cached / "refs" / "main").write_text("a" * 40)
    described = describe("hf:someone/yolos", None)
    (cached / "refs" / "main").write_text("b" * 40)
    newer = describe("hf:someone/yolos", None)
    assert newer.weights != described.weights
    for one in (described, newer):
        load("hf:someone/yolos", Load(one.place, one.weights, "cpu", "fp32"))


def test_it_is_run_one_by_one(tmp_path: Path) -> None:
    folder = saved(yolos, tmp_path / "net")
    assert isinstance(load(f"hf:{folder}", Load(None, None, "cpu", "fp32")), OneByOne)
