"""Detectors of transformers: any that `AutoModelForObjectDetection` loads, with its processor."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.description import Description, Load
from model.errors import CheckpointError, CheckpointUnavailable, UnknownName
from model.image_detector import Found, NotFinite, weight_bytes
from model.named import FROM_HUB
from model.resize import AS_DISPLAYED
from model.weights import file_sha256, is_hub_resolvable

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MOST_CLASSES = 1 << 16
SNAPSHOTS = "snapshots"  # the hub's cache has the revisions of a model there, by their names
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
NEWER_PROCESSOR = "processor_config.json"
SAFE = {"local_files_only": True, "trust_remote_code": False}  # no code of the folder is run
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(DTYPES)


class HubDetector:
    """A detector of transformers on its device. It meets `ImageDetector`.

    Its image processor resizes and normalises, and makes boxes of what the network returns. Weights
    stay fp32; in 16 bits torch's autocast chooses what is computed in them.
    """

    def __init__(self, folder: Path, device: str = "cpu", precision: str = "fp32"):
        auto = _transformers()
        self.device, self.dtype = device, DTYPES[precision]
        try:
            self.processor: Any = auto.AutoImageProcessor.from_pretrained(folder, **SAFE)
            net, loaded = auto.AutoModelForObjectDetection.from_pretrained(
                folder,
                **SAFE,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # files break in many ways, and there is no common error
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{FROM_HUB}{folder} is no detector of transformers: {reason}"
            ) from error
        if missing := sorted(loaded["missing_keys"]):  # they would be random
            raise CheckpointError(
                f"{FROM_HUB}{folder} lacks weights of its network: {len(missing)} missing, such as "
                f"{missing[0]}"
            )
        self.net: Any = net.eval().to(device)
        names = {int(number): str(name) for number, name in net.config.id2label.items()}
        count = max(names, default=-1) + 1
        if count > MOST_CLASSES:
            raise CheckpointError(
                f"{FROM_HUB}{folder} names a class {count - 1} (id2label in {CONFIG}): numbers go "
                f"up to {MOST_CLASSES - 1}"
            )
        self.labels = tuple(_name(names.get(i, "")) for i in range(count))

    @torch.inference_mode()
    def detect(self, image: npt.NDArray[np.uint8]) -> Found:
        """Detect in an image (H, W, 3) uint8, see `ImageDetector.detect`."""
        inputs = self.processor(
            images=np.array(image), input_data_format="channels_last", return_tensors="pt"
        ).to(self.device)
        kind = torch.device(self.device).type
        with torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32):
            output = self.net(**inputs)
        for key in ("logits", "pred_boxes"):
            output[key] = output[key].float()
            if not output[key].isfinite().all():  # transformers would drop such boxes
                raise NotFinite
        (found,) = self.processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=[image.shape[:2]]
        )
        height, width = image.shape[:2]
        limits = torch.tensor([width, height, width, height])
        boxes = torch.minimum(found["boxes"].cpu().clamp(min=0), limits)
        return boxes, found["scores"].cpu(), found["labels"].cpu()


def _name(label: str) -> str:
    """A class name. "N/A" is the name of numbers that stand for no class."""
    return "" if label == "N/A" else label


def _transformers() -> Any:
    try:
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
    except ImportError as error:
        raise CheckpointError(
            f"{FROM_HUB} needs the package transformers: install the extra `hf` (pip install "
            "'detr-batch[hf]')"
        ) from error
    return transformers


def settled(model: str) -> str:
    """The name of a model that means the same in every folder: that of a local one is absolute."""
    folder = Path(model.removeprefix(FROM_HUB))
    return f"{FROM_HUB}{folder.resolve()}" if folder.is_dir() else model


def describe(model: str, weights: str | None) -> Description:
    """Describe `hf:FOLDER_OR_ID`. Raises as `model.detectors.describe`."""
    if weights:
        raise UnknownName(f"--weights is not for {FROM_HUB}: {model} has its own weights in it")
    folder = _folder(model)
    detector = HubDetector(folder)
    identity = {"library": "transformers", "labels": detector.labels}
    return Description(
        detector.labels,
        AS_DISPLAYED,
        PRECISIONS,
        identity,
        _digest(folder),
        is_alone=True,
        weight_bytes=weight_bytes(detector.net),
        place=folder.name if folder.parent.name == SNAPSHOTS else None,
    )


def load(model: str, wanted: Load) -> HubDetector:
    """Load `hf:FOLDER_OR_ID`. Raises as `model.detectors.load`.

    The weights of what was described are the revision of an id, which may have a newer one now.
    """
    folder = _folder(model, wanted.weights)
    detector = HubDetector(folder, wanted.device, wanted.precision)
    wanted.check(model, _digest(folder))
    return detector


def _folder(model: str, revision: str | None = None) -> Path:
    """The local folder of a model, which is fetched from the hub once if it is no folder.

    `revision` is that of an id of the hub; None: the newest.
    """
    _transformers()
    place = model.removeprefix(FROM_HUB)
    folder = Path(place)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(place):
            raise CheckpointError(
                f"{model}: there is no folder {place}, and it is no id of the hub"
            )
        folder = _fetched(place, revision)
    names = {path.name for path in folder.iterdir()}
    if CONFIG not in names:
        raise CheckpointError(f"{model}: no {CONFIG} is there, so it is no model of transformers")
    if not names & {PROCESSOR, NEWER_PROCESSOR}:
        raise CheckpointError(
            f"{model} has no image processor ({PROCESSOR}): save it into the same folder, with "
            "`AutoImageProcessor.from_pretrained(...).save_pretrained(FOLDER)`"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"{model} has no weights as .safetensors, and others could run code: convert them "
            "where you trust them, with `save_pretrained(FOLDER)`"
        )
    return folder


def _fetched(place: str, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(
                place,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors"],
                local_files_only=not is_hub_resolvable(),
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointUnavailable(
            f"{FROM_HUB}{place} is no folder, and is neither cached nor reachable on the hub"
        ) from error
    except Exception as error:  # the hub's client has no common error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        gone = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | ValueError)
        kind = CheckpointError if gone else CheckpointUnavailable
        raise kind(f"{FROM_HUB}{place} cannot be fetched: {reason}") from error


def _digest(folder: Path) -> str:
    """SHA-256 of all that decides the detections: configuration, processor and weights."""
    digest = hashlib.sha256()
    for path in _deciding(folder.iterdir()):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _deciding(paths: Iterable[Path]) -> list[Path]:
    names = {CONFIG, PROCESSOR, NEWER_PROCESSOR}
    return sorted(path for path in paths if path.name in names or path.suffix == ".safetensors")
