"""Deformable DETR on its device, from pixels to boxes. A GPU does not wait for the host.

    host     batch 1 | batch 2       | boxes 1 | batch 3 | boxes 2
    copies           | 1 ->          | 2 ->    |         | 3 ->
    device                | compute 1 ....... | compute 2 .......

`submit` returns as soon as the work is in the device's queue. A caller keeps the device busy by
submitting the next batch before it asks for the `result` of the last one.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cuda_graphs import RECORD_AT, Graphed
from model.deformable_detr import DeformableDetr
from model.detector import Detections, Size
from model.postprocess import postprocess
from model.preprocess import normalize
from model.resize import ResizeRule, canvas_rule

GPU_COUNT = 8  # images of a batch on a GPU; the best number is not measured yet
# Proportions of photos and screens, the commonest first. Their forms are recorded in advance.
PROPORTIONS = ((3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1), (4, 5), (5, 4))
CPU_WARM_UP = (64, 64)  # of an image by which a CPU loads its kernels


@dataclass(frozen=True)
class Events:
    """Events in the queue of a GPU, in their order. All are recorded on the computing stream."""

    began: torch.cuda.Event  # the images are on the device
    computed: torch.cuda.Event  # the boxes are on the device
    ready: torch.cuda.Event  # the boxes are on the host

    @classmethod
    def create(cls) -> "Events":
        """Create new events. A thread that waits for `ready` sleeps: spinning would use a core."""
        began, computed = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        return cls(began, computed, torch.cuda.Event(blocking=True))


class PendingDetections:
    """The result of a batch that a device may still be computing."""

    def __init__(self, packed: Tensor, events: Events | None):
        self._packed, self._events = packed, events

    def result(self) -> Detections:
        """Wait for the detections and return them on the host. RuntimeError if the device failed.

        For B images and N detections each: scores (B, N) fp32, labels (B, N) int64 and boxes
        (B, N, 4) fp32.
        """
        if self._events is not None:
            self._events.ready.synchronize()
        scores, labels, boxes = self._packed.split((1, 1, 4), dim=-1)
        return Detections(scores[..., 0], labels[..., 0].long(), boxes)

    @property
    def device_seconds(self) -> float | None:
        """The device's computing time in seconds, without copies; None on CPUs.

        It is known after `result`. It includes the gaps between kernels that the host starts one by
        one, and the time to record a CUDA graph if the batch caused a recording.
        """
        if self._events is None:
            return None
        return self._events.began.elapsed_time(self._events.computed) / 1e3


def count_on(device: str, count: int | None) -> int:
    """The number of images in every batch, if `count` is asked for (None: what is best)."""
    return (count or GPU_COUNT) if torch.device(device).type == "cuda" else 1


def likely_sizes(rule: ResizeRule) -> list[Size]:
    """Resized sizes of images of common proportions, one for each of their canvases."""
    canvases = canvas_rule(rule)
    sizes = [rule.target_size(600 * height, 600 * width) for height, width in PROPORTIONS]
    return list({canvases.canvas(*size): size for size in sizes}.values())


class Predictor:
    """Runs `net`, which is prepared for inference, on its device. It meets `BatchDetector`.

    On a GPU a batch has `count` images (None: GPU_COUNT). On a CPU each image goes alone at its own
    size, which is as fast. Several threads may use a predictor at once.
    """

    def __init__(self, net: DeformableDetr, device: str, top: int = 100, count: int | None = None):
        self.net, self.top = net, top
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.count = count_on(device, count)
        self.pads = self.pins = self.on_gpu
        self.ahead = 1 if self.on_gpu else 0
        self.canvases = canvas_rule(net.config.resize)
        self.detect = Graphed(self._detect, net.kept_positions) if self.on_gpu else self._detect
        self.copies = torch.cuda.Stream(self.device) if self.on_gpu else None
        self._likely = likely_sizes(net.config.resize) if self.on_gpu else [CPU_WARM_UP]
        self._lock = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names by number; "" is a number that stands for no class."""
        return self.net.config.labels

    @property
    def resize(self) -> ResizeRule:
        """The size to which an image must be resized."""
        return self.net.config.resize

    def canvas(self, size: Size) -> Size:
        """The canvas of an image of this resized size; on a CPU the image itself."""
        return self.canvases.canvas(*size) if self.pads else size

    def submit(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> PendingDetections:
        """Start the detection in a batch, see `BatchDetector.submit`."""
        return self._submit(pixels, valid, sizes)

    @torch.inference_mode()
    def _submit(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> PendingDetections:
        if self.copies is None:
            with self._lock:
                return PendingDetections(self._detect(pixels, valid, sizes), None)
        with self._lock, torch.cuda.device(self.device):
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(self.copies):
                pixels = pixels.to(self.device, non_blocking=True)
                sizes = sizes.pin_memory().to(self.device, non_blocking=True)
                if valid is not None:
                    valid = valid.to(self.device, non_blocking=True)
            computing.wait_stream(self.copies)
            for tensor in (pixels, sizes, *(() if valid is None else (valid,))):
                tensor.record_stream(computing)  # the tensor was created on the other stream
            events = Events.create()
            events.began.record(computing)
            packed = self.detect(pixels, valid, sizes)
            events.computed.record(computing)
            back = torch.empty(packed.shape, pin_memory=True)
            back.copy_(packed, non_blocking=True)
            events.ready.record(computing)
        return PendingDetections(back, events)

    def _detect(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> Tensor:
        """Detections as (B, N, 6) fp32: score, label and corners in one tensor, for one copy."""
        inputs = normalize(pixels, valid, self.net.dtype, self.net.takes_blocks)
        found = postprocess(self.net(*inputs), sizes, self.top)
        columns = (found.scores[..., None], found.labels[..., None].float(), found.boxes)
        return torch.cat(columns, dim=-1)

    def warm_up(self) -> bool:
        """Prepare for one more form, see `BatchDetector.warm_up`. A GPU records its graph.

        This is no `submit`: who watches that counts the batches of images alone.
        """
        if not self._likely:
            return False
        size = self.canvas(self._likely.pop(0))
        pixels = torch.zeros(self.count, *size, 3, dtype=torch.uint8, pin_memory=self.pins)
        valid = torch.tensor([list(size)] * self.count) if self.pads else None
        for _ in range(RECORD_AT if self.on_gpu else 1):
            self._submit(pixels, valid, torch.ones(self.count, 2, dtype=torch.int64)).result()
        return bool(self._likely)

    def give_memory_back(self) -> None:
        """Free the memory of CUDA graphs, which only save time. For use after memory ran out."""
        if isinstance(self.detect, Graphed):
            with self._lock:
                self.detect.forget()
