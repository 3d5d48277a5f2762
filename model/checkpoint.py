"""Loading weights strictly, whatever layout they were published in.

Three layouts are known: the original's `.pth`, the hub's older files, and those of transformers 5.
All are renamed to the original's keys, which are this model's own attribute names. Pickles are read
with `weights_only`, so that a hostile file is refused instead of run.
"""

import argparse
import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from model.config import DeformableDetrConfig
from model.errors import CheckpointError, DamagedCheckpoint
from model.set_detector import SetDetector
from model.weights_file import (
    FLOATS,
    is_stored,
    metadata_of,
    read_bytes,
    refuse_large_header,
    refuse_packed_archive,
)

State = dict[str, Tensor]


# Names of transformers' layouts -> the original's, applied in order.
_DEFORMABLE_DETR = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.", "transformer."),
    (r"\.mlp\.fc", ".fc"),
    (r"\.fc([12])\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(transformer\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
]
_DETR = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^model\.", "transformer."),
    (r"\.mlp\.fc", ".fc"),
    (r"\.fc([12])\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"decoder\.layernorm\.", "decoder.norm."),
]
# Which family weights are of, by a key of any layout; the first that is found.
_FAMILIES = {
    "Deformable DETR": re.compile(r"\.sampling_offsets\."),
    "Faster R-CNN": re.compile(r"^roi_heads\."),
    "DETR": re.compile(r"decoder\.layers\.0\.(multihead_attn|encoder_attn)\."),
}
# Counters of profilers and of batch norms, which inference does not read.
_IGNORED = re.compile(r"(total_params|total_ops)$")
_ALIAS = re.compile(r"^transformer\.decoder\.((?:class|bbox)_embed\..*)$")


def read_weights(path: Path, sha256: str | None = None) -> tuple[State, dict[str, str]]:
    """Tensors by name as stored, and the file's metadata (empty for pickles).

    With `sha256` the file must have this digest. The file is read once, so that the tensors are
    those of the bytes that were hashed, even if another process replaces the file.

    Raises CheckpointError if the file is of another kind or would run code, and its subclass
    DamagedCheckpoint if it is truncated or has another digest.
    """
    try:
        data = read_bytes(path)
        if sha256 is not None and sha256 != (found := hashlib.sha256(data).hexdigest()):
            raise DamagedCheckpoint(
                f"{path} has sha256 {found}, and the command found {sha256} when it began: the "
                "weights were replaced meanwhile, or they differ between nodes"
            )
        if path.suffix == ".safetensors":
            refuse_large_header(path, data)
            return load(data), metadata_of(data)
        refuse_packed_archive(path, data)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        reason = _first_line(error)
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, and reading it could run code "
            f"({reason}). Convert it to .safetensors where you trust it."
        ) from error
    except Exception as error:  # files break in many ways, and the libraries have no common error
        raise DamagedCheckpoint(
            f"{path} is not a whole weights file: {_first_line(error)}"
        ) from error
    return _state_of(content, path), {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]


def _state_of(content: object, path: Path) -> State:
    """The tensors by name in an unpickled file. Raises CheckpointError if there are none."""
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{path} holds no state dict (tensors by name)")
    if wrong := sorted(key for key, tensor in state.items() if not is_stored(tensor)):
        raise CheckpointError(
            f"{path} is refused: it stores only a part of the numbers of {_named(wrong)}"
        )
    return state


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """The family of detectors that weights are of; None if it is none of the known ones."""
    found = (name for name, mark in _FAMILIES.items() if any(map(mark.search, state)))
    return next(found, None)


def canonical(state: Mapping[str, Tensor]) -> State:
    """`state` under the original's names, with the separate projections of attention joined."""
    renamed: State = {}
    foreign = any(key.startswith("model.") for key in state)
    renames = _DETR if family_of(state) == "DETR" else _DEFORMABLE_DETR
    for key, tensor in state.items():
        if _IGNORED.search(key):
            continue
        for pattern, replacement in renames if foreign else ():
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    for key in [key for key in renamed if ".q_proj." in key]:
        parts = [key.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        kinds = {(renamed[part].dtype, renamed[part].shape) for part in parts if part in renamed}
        if len(kinds) == 1 and all(part in renamed for part in parts):
            joined = key.replace(".q_proj.", ".in_proj_")
            renamed[joined] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _untie(state: State, wanted: Mapping[str, Tensor], tied: bool) -> State:
    """Heads under every name the model has: files drop copies of a tensor, or add aliases."""
    heads = dict(state)
    for key in state:
        alias = _ALIAS.match(key)
        if alias:
            tensor = heads.pop(key)
            known = heads.setdefault(alias[1], tensor)
            kinds = {(one.dtype, one.shape) for one in (known, tensor)}
            if len(kinds) > 1 or not torch.equal(known, tensor):
                raise CheckpointError(f"{key} and {alias[1]} are one head, but differ")
    for key in wanted if tied else ():
        head = re.match(r"^(class_embed|bbox_embed)\.\d+\.(.*)$", key)
        if head and key not in heads:
            pattern = re.compile(rf"^{head[1]}\.\d+\.{re.escape(head[2])}$")
            same = next((name for name in heads if pattern.match(name)), None)
            if same is not None:
                heads[key] = heads[same]
    return heads


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def load_state(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill `net` from a state dict of any layout. CheckpointError unless every key fits."""
    wanted = net.state_dict()
    own, family = family_of(wanted), family_of(state)
    if family not in (None, own):
        raise CheckpointError(
            f"{source} holds weights of {family}, and this model is {own}: give other weights, or "
            "--model with one of theirs (see `detr-batch models`)"
        )
    found = canonical(state) if isinstance(net, SetDetector) else dict(state)
    if isinstance(net, SetDetector) and isinstance(net.config, DeformableDetrConfig):
        found = _untie(found, wanted, tied=not net.config.with_box_refine)
    for key in [key for key in found if key.endswith("num_batches_tracked") and key not in wanted]:
        del found[key]
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted))
    shapes = [
        f"{key} is {tuple(found[key].shape)} and should be {tuple(wanted[key].shape)}"
        for key in sorted(set(wanted) & set(found))
        if found[key].shape != wanted[key].shape
    ]
    kinds = [
        f"{key} is {found[key].dtype}"
        for key in sorted(set(wanted) & set(found))
        if (found[key].dtype in FLOATS) != wanted[key].is_floating_point()
    ]
    problems = [
        *([f"{len(missing)} missing: {_named(missing)}"] if missing else []),
        *([f"{len(unexpected)} not of this model: {_named(unexpected)}"] if unexpected else []),
        *([f"{len(shapes)} of another shape: {_named(shapes)}"] if shapes else []),
        *([f"{len(kinds)} of another type: {_named(kinds)}"] if kinds else []),
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit this model ({'; '.join(problems)}). "
            "Is it the weights of another variant? See `detr-batch models`."
        )
    broken = sorted(key for key, tensor in found.items() if not tensor.isfinite().all())
    if broken:
        raise CheckpointError(
            f"{source} holds numbers that are not finite, in {_named(broken)}: the weights are "
            "damaged, or come from a training that diverged"
        )
    net.load_state_dict(found)


def save_weights(net: SetDetector, path: Path, notes: Mapping[str, str]) -> None:
    """Write `net` as half-precision safetensors; labels and `notes` go into the metadata.

    ValueError for a net that is prepared for inference.
    """
    net.refuse_if_prepared()
    state = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for key, tensor in net.state_dict().items()
    }
    # (save_file would make a file that its owner alone may read.)
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        unfinished.write_bytes(save(state, {**notes, "labels": json.dumps(net.config.labels)}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
