"""Bounds of weights files, which come from anybody, and the metadata that such a file may have.

safetensors checks sizes and offsets itself. It takes headers of 100 MB, though: one of 58 MB with
900,000 tensors took 15 s and 2 GB (2026-11-27). torch unpacks compressed archives, whatever size
they have unpacked, and makes tensors of any size out of a few stored numbers.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.errors import CheckpointError, DamagedCheckpoint

MOST_BYTES = 4 << 30  # of a file; the largest published one has 170 MB, one of a training 500 MB
MOST_HEADER_BYTES = 8 << 20  # of a safetensors file; that of 500 tensors has 50 kB
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The head for classes of each family, and its outputs beside those of classes: DETR's "no object".
CLASS_HEADS = (
    ("class_embed.0.bias", 0),
    ("class_embed.bias", 1),
    ("roi_heads.box_predictor.cls_score.bias", 0),
)
_LENGTH_BYTES = 8  # of the length of a safetensors header, at the beginning of the file


def read_bytes(path: Path) -> bytes:
    """The file as a whole. Raises CheckpointError if it is too large for these models."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise CheckpointError(
            f"{path} has {size / 1e9:.1f} GB, and weights of these models have {MOST_BYTES >> 30} "
            "GB at most: give another file"
        )
    return path.read_bytes()


def refuse_large_header(path: Path, data: bytes) -> None:
    """Raise DamagedCheckpoint for a safetensors file whose header would take minutes to read."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MOST_HEADER_BYTES:
        raise DamagedCheckpoint(
            f"{path} is not a whole weights file: its header should have {length} bytes, and "
            f"{MOST_HEADER_BYTES} are the most that is read"
        )


def refuse_packed_archive(path: Path, data: bytes) -> None:
    """Raise CheckpointError for an archive that is larger when it is unpacked; torch packs none."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError(
            f"{path} is refused: it is a compressed archive, and torch writes none. Unpack it, or "
            "convert it to .safetensors where you trust it"
        )


def is_stored(tensor: Tensor) -> bool:
    """Whether a tensor is plain, with all its numbers stored: an expanded one has any size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def metadata_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that safetensors has loaded, from its header."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata


def labels_of(metadata: Mapping[str, str], state: Mapping[str, Tensor], source: str) -> list[str]:
    """The class names that `save_weights` wrote; `source` names the file in errors.

    Raises DamagedCheckpoint if they are no names, or not as many as the heads have classes.
    """
    try:
        labels = json.loads(metadata["labels"])
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DamagedCheckpoint(
            f"{source} is not a whole weights file: `labels` in its header is no list of names"
        )
    key, more = next(((key, more) for key, more in CLASS_HEADS if key in state), ("", 0))
    bias = state.get(key)
    if bias is None or tuple(bias.shape) != (len(labels) + more,):
        heads = "no head for classes" if bias is None else f"heads of shape {tuple(bias.shape)}"
        raise DamagedCheckpoint(
            f"{source} is not a whole weights file: its header names {len(labels)} classes, and it "
            f"has {heads}"
        )
    return labels
