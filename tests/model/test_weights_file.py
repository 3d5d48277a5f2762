"""Weights files that lie about their size or their content end in one error of ours."""

import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.cli import exit_code_of
from model import weights_file
from model.checkpoint import load_state, read_weights
from model.deformable_detr import DeformableDetr
from model.errors import CheckpointError, DamagedCheckpoint
from model.weights_file import labels_of
from model.zoo import create_deformable_detr

A_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> DeformableDetr:
    return create_deformable_detr("shapes-tiny", "random", training=True)


def state_of(net: DeformableDetr) -> State:
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def write_header(path: Path, header: bytes, length: int | None = None) -> Path:
    """A safetensors file with 8 bytes of data, whose header may lie about its own length."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    with path.open("ab") as file:
        file.write(bytes(8))
    return path


def header(**changes: Any) -> bytes:
    return json.dumps({"a": {**A_TENSOR, **changes}}).encode()


LYING_HEADERS = {
    "an offset behind the end": header(data_offsets=[0, 800]),
    "an offset before the start": header(data_offsets=[-8, 0]),
    "more numbers than bytes": header(shape=[2**62, 4]),
    "a negative side": header(shape=[-2]),
    "5,000 digits": header(shape=["?"]).replace(b'"?"', b"9" * 5000),
    "an unknown type": header(dtype="F33"),
    "one place for two": json.dumps({"a": A_TENSOR, "b": A_TENSOR}).encode(),
    "metadata that is a number": json.dumps({"__metadata__": 5, "a": A_TENSOR}).encode(),
    "labels that are a number": json.dumps({"__metadata__": {"labels": 5}}).encode(),
    "100,000 levels": b'{"a":' * 100_000,
    "no UTF-8": header().replace(b"a", b"\xff", 1),
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LYING_HEADERS)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.safetensors", LYING_HEADERS[lie])
    with pytest.raises(DamagedCheckpoint, match="is not a whole weights file") as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)
    assert exit_code_of(refused.value) == 1


@pytest.mark.parametrize("length", [2**63, 90 << 20, weights_file.MOST_HEADER_BYTES + 1])
def test_headers_that_are_too_long(length: int, tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.safetensors", header(), length)
    with pytest.raises(DamagedCheckpoint, match=f"should have {length} bytes"):
        read_weights(path)


def test_a_header_of_many_tensors_is_refused_at_once(tmp_path: Path) -> None:
    """One of 58 MB took 15 s and 2 GB."""
    entries = (
        f'"{n}":{{"dtype":"F32","shape":[],"data_offsets":[{4 * n},{4 * n + 4}]}}'
        for n in range(200_000)
    )
    path = tmp_path / "a.safetensors"
    write_header(path, f"{{{','.join(entries)}}}".encode())
    with pytest.raises(DamagedCheckpoint, match="are the most that is read"):
        read_weights(path)


@pytest.mark.parametrize(
    "labels", ["5", '"abc"', "[1]", "[", "null", '{"a": 1}', "[" * 100_000, "9" * 5000, "NaN"]
)
def test_labels_that_are_no_names(labels: str, tmp_path: Path, tiny: DeformableDetr) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state_of(tiny), path, {"labels": labels})
    with pytest.raises(DamagedCheckpoint, match="`labels` in its header is no list of names"):
        create_deformable_detr("shapes-tiny", str(path))


def test_labels_of_other_heads(tmp_path: Path, tiny: DeformableDetr) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state_of(tiny), path, {"labels": json.dumps(["x"] * 100_000)})
    with pytest.raises(DamagedCheckpoint, match="names 100000 classes, and it has heads of shape"):
        create_deformable_detr("shapes-tiny", str(path))
    save_file({"a": torch.zeros(2)}, path, {"labels": "[]"})
    with pytest.raises(DamagedCheckpoint, match="no head for classes"):
        create_deformable_detr("shapes-tiny", str(path))


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "float8_e4m3fn", "int64"])
def test_types_that_are_no_weights(dtype: str, tmp_path: Path, tiny: DeformableDetr) -> None:
    state, path = state_of(tiny), tmp_path / "a.safetensors"
    name = "class_embed.0.weight"
    state[name] = state[name].to(getattr(torch, dtype))
    save_file(state, path, {"labels": json.dumps(tiny.config.labels)})
    with pytest.raises(CheckpointError, match=f"1 of another type: {name} is torch.{dtype}"):
        create_deformable_detr("shapes-tiny", str(path))


PICKLED: dict[str, tuple[Any, str]] = {
    "one number for a trillion": ({"a": torch.zeros(1).expand(10**12)}, "stores only a part"),
    "no numbers": ({"a": torch.zeros(2, device="meta")}, "stores only a part"),
    "a sparse tensor": ({"a": torch.eye(3).to_sparse()}, "stores only a part"),
    "a name that is a number": ({5: torch.zeros(2)}, "holds no state dict"),
    "a list": ([torch.zeros(2)], "holds no state dict"),
}


@pytest.mark.parametrize("kind", PICKLED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pickled_tensors_that_are_not_stored(kind: str, tmp_path: Path) -> None:
    content, message = PICKLED[kind]
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_archives_that_grow_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    stored = io.BytesIO()
    torch.save({"a": torch.zeros(20_000_000)}, stored)
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(path, "w") as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4" + b"x" * 99, b"\x80\2" + b"(" * 99_999, b"."])
def test_pickles_that_are_broken(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_weights(path)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_file, "MOST_BYTES", 10)
    with pytest.raises(CheckpointError, match="give another file"):
        read_weights(write_header(tmp_path / "a.safetensors", header()))


def changed_state(rng: random.Random, state: State) -> State:
    """A state dict of which some tensors are renamed, dropped, or of another kind."""
    changed = dict(state)
    for name in rng.sample(sorted(changed), 3):
        tensor = changed.pop(name)
        action = rng.choice(["drop", "name", "type", "shape", "alias", "parts", "value"])
        if action == "name":
            changed[rng.choice(["", "model.", "transformer.decoder."]) + name[3:]] = tensor
        elif action == "type":
            changed[name] = tensor.to(rng.choice([torch.int8, torch.float16, torch.float64]))
        elif action == "shape":
            changed[name] = tensor.flatten()[:1].clone()
        elif action == "alias":
            changed[name] = tensor
            changed["transformer.decoder.class_embed.0.bias"] = tensor.clone()
        elif action == "parts":
            for letter in "qkv":
                part = torch.zeros(rng.randint(1, 3), 2, dtype=rng.choice([torch.half, torch.int8]))
                changed[f"model.x.self_attn.{letter}_proj.weight"] = part
        elif action == "value":
            changed[name] = torch.full_like(tensor, rng.choice([0, 1]))
    return changed


@pytest.mark.parametrize("case", range(30))
def test_changed_weights_are_loaded_or_refused(
    case: int, tmp_path: Path, tiny: DeformableDetr
) -> None:
    rng = random.Random(case)
    state, path = changed_state(rng, state_of(tiny)), tmp_path / "a.safetensors"
    labels = rng.choice([tiny.config.labels, ["x"], [None], {}, "abc", 5])
    save_file(state, path, {"labels": json.dumps(labels)})
    try:
        found, metadata = read_weights(path)
        labels_of(metadata, found, str(path))
        load_state(DeformableDetr(tiny.config), found, str(path))
    except CheckpointError as error:
        assert "\n" not in str(error)
