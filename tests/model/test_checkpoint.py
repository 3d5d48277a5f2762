"""Three published layouts load strictly; hostile, truncated and foreign files are refused."""

import argparse
import os
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import canonical, load_state, read_weights, save_weights
from model.deformable_detr import DeformableDetr
from model.errors import CheckpointError
from model.named import deformable_config
from model.zoo import create_deformable_detr
from tests.conftest import TESTDATA
from tests.support.parameters import slow_but

KEYS = TESTDATA.parent / "facts" / "checkpoint_keys"
VARIANTS = {
    "multi_scale": "deformable-detr",
    "single_scale": "deformable-detr-single-scale",
    "single_scale_dc5": "deformable-detr-single-scale-dc5",
    "box_refine": "deformable-detr-with-box-refine",
    "two_stage": "deformable-detr-with-box-refine-two-stage",
}
LAYOUTS = ("original", "hub_legacy", "transformers_5_23")


@pytest.fixture(scope="module")
def tiny() -> DeformableDetr:
    return create_deformable_detr("shapes-tiny", "random", training=True)


@pytest.mark.parametrize(
    ("layout", "variant"),
    slow_but(
        [
            ("original", "multi_scale"),
            ("hub_legacy", "two_stage"),
            ("transformers_5_23", "box_refine"),
        ],
        product(("original", "hub_legacy", "transformers_5_23"), VARIANTS),
    ),
)
def test_published_key_lists_load_with_nothing_left_over(layout: str, variant: str) -> None:
    import json

    if not KEYS.is_dir():
        pytest.skip(f"{KEYS} is absent: this test needs the published key lists")
    shapes = json.loads((KEYS / f"{layout}.json").read_text())[variant]
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    net = DeformableDetr(deformable_config(VARIANTS[variant]))
    load_state(net, state, layout)
    assert all(not p.any() for p in net.parameters())


def test_missing_heads_are_tied_where_the_model_ties_them() -> None:
    net = DeformableDetr(deformable_config("deformable-detr-single-scale"))
    state = {
        key: tensor
        for key, tensor in net.state_dict().items()
        if not key.startswith(tuple(f"{h}_embed.{i}" for h in ("class", "bbox") for i in range(5)))
    }
    load_state(net, state, "file with one head")


def test_original_pth_loads_with_its_argparse_namespace(
    tmp_path: Path, tiny: DeformableDetr
) -> None:
    content = {
        "model": {**tiny.state_dict(), "backbone.0.total_ops": torch.zeros(1)},
        "epoch": 49,
        "args": argparse.Namespace(lr=2e-4),
    }
    torch.save(content, tmp_path / "r50.pth")
    state, _ = read_weights(tmp_path / "r50.pth")
    load_state(tiny, state, "r50.pth")


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_hostile_pickle_is_refused_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model": Hostile(marker)}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="refused"):
        read_weights(tmp_path / "hostile.pth")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(
    tmp_path: Path, tiny: DeformableDetr, suffix: str, share: float
) -> None:
    path = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(tiny.state_dict(), path)
    else:
        save_weights(tiny, path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="not a whole weights file"):
        read_weights(path)


def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path: Path, tiny: DeformableDetr) -> None:
    state: dict[str, Tensor] = {k: v.clone() for k, v in tiny.state_dict().items()}
    state.pop("transformer.level_embed")
    state["stranger"] = torch.zeros(1)
    state["input_proj.0.0.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError) as caught:
        create_deformable_detr("shapes-tiny", str(tmp_path / "odd.safetensors"))
    for part in ("missing: transformer.level_embed", "stranger", r"input_proj.0.0.weight is (3,)"):
        assert part in str(caught.value)


def test_sha256_is_checked(tmp_path: Path, tiny: DeformableDetr) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(tiny, path, {})
    with pytest.raises(CheckpointError, match="sha256"):
        create_deformable_detr("shapes-tiny", f"{path}#sha256={'0' * 64}")


def test_canonical_leaves_the_original_layout_alone(tiny: DeformableDetr) -> None:
    state = tiny.state_dict()
    assert canonical(state).keys() == state.keys()
