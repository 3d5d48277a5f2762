"""A detector on its device, from images to boxes. A GPU does not wait for the host.

    host     stack 1 | stack 2       | boxes 1 | stack 3 | boxes 2
    copies           | 1 ->          | 2 ->    |         | 3 ->
    device                | compute 1 ....... | compute 2 .......

`submit` returns as soon as the work is in the device's queue. A caller keeps the device busy by
submitting the next batch before it asks for the `result` of the last one.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cuda_graphs import Graphed
from model.deformable_detr import DeformableDetr
from model.postprocess import Detections, postprocess
from model.preprocess import normalize, stack_images

# On GPUs the sides of padded images are rounded up to a multiple of this number of pixels, because
# each shape needs its own CUDA graph.
MULTIPLE = 64


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


class Pending:
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


class Predictor:
    """Runs `net`, which is prepared for inference, on its device.

    It keeps the `top` best detections per image. Several threads may use it at the same time.
    """

    def __init__(self, net: DeformableDetr, device: str, top: int = 100):
        self.net, self.top = net, top
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.detect = Graphed(self._detect, net.kept_positions) if self.on_gpu else self._detect
        self.copies = torch.cuda.Stream(self.device) if self.on_gpu else None
        self._lock = threading.Lock()

    @property
    def ahead(self) -> int:
        """The number of batches that may wait for their results while the next is submitted."""
        return 1 if self.on_gpu else 0

    @torch.inference_mode()
    def submit(self, images: Sequence[Tensor], sizes: Tensor) -> Pending:
        """Start the detection in a batch of B images, each (h, w, 3) uint8.

        `sizes` (B, 2) int64 are the heights and widths in pixels to which the boxes are scaled.
        Raises RuntimeError if memory does not hold the batch, or if the device fails.
        """
        pixels, valid = stack_images(images, MULTIPLE if self.on_gpu else 1, pin=self.on_gpu)
        if self.copies is None:
            with self._lock:
                return Pending(self._detect(pixels, valid, sizes), None)
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
        return Pending(back, events)

    def _detect(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> Tensor:
        """Detections as (B, N, 6) fp32: score, label and corners in one tensor, for one copy."""
        found = postprocess(self.net(*normalize(pixels, valid, self.net.dtype)), sizes, self.top)
        columns = (found.scores[..., None], found.labels[..., None].float(), found.boxes)
        return torch.cat(columns, dim=-1)

    def give_memory_back(self) -> None:
        """Free the memory of CUDA graphs, which only save time. For use after memory ran out."""
        if isinstance(self.detect, Graphed):
            with self._lock:
                self.detect.forget()
