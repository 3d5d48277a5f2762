"""A detector on its device, from pixels to boxes. A GPU does not wait for the host.

    host     batch 1 | batch 2       | boxes 1 | batch 3 | boxes 2
    copies           | 1 ->          | 2 ->    |         | 3 ->
    device                | compute 1 ....... | compute 2 .......

A detector with a fallback (fallback.py) detects again in an image whose numbers are not all finite,
when its result is asked for.

`submit` returns as soon as the work is in the device's queue. A caller keeps the device busy by
submitting the next batch before it asks for the `result` of the last one.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from model.cuda_graphs import RECORD_AT, Graphed
from model.detector import Detections, Size
from model.ops import by_triton
from model.preprocess import enlarge
from model.resize import ResizeRule, canvas_rule
from model.set_detector import SetDetector

GPU_COUNT = 8  # images of a batch on a GPU; the best number is not measured yet
# Proportions of photos and screens, the commonest first. Their forms are recorded in advance.
PROPORTIONS = ((3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1), (4, 5), (5, 4))
CPU_WARM_UP = (64, 64)  # of an image by which a CPU loads its kernels


Again: TypeAlias = Callable[[Tensor], "PendingDetections"]


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
    """The result of a batch that a device may still be computing.

    `again` starts a second detection in those images (B,) bool whose numbers are not all finite.
    """

    def __init__(self, packed: Tensor, events: Events | None, again: Again | None = None):
        self._packed, self._events, self._again = packed, events, again
        self._second: PendingDetections | None = None

    def result(self) -> Detections:
        """Wait for the detections and return them on the host. RuntimeError if the device failed.

        For B images and N detections each: scores (B, N) fp32, labels (B, N) int64 and boxes
        (B, N, 4) fp32.
        """
        if self._events is not None:
            self._events.ready.synchronize()
        self._replace_wrong()
        scores, labels, boxes = self._packed.split((1, 1, 4), dim=-1)
        return Detections(scores[..., 0], labels[..., 0].long(), boxes)

    @torch.inference_mode()
    def _replace_wrong(self) -> None:
        """Replace the detections of images whose numbers are not all finite, if there is a way."""
        again, self._again = self._again, None
        wrong = self._packed[..., 0].isnan().any(1)
        if again is None or not wrong.any():
            return
        self._second = again(wrong)
        self._second.result()
        self._packed[wrong] = self._second._packed[wrong]

    @property
    def device_seconds(self) -> float | None:
        """The device's computing time in seconds, without copies; None on CPUs.

        It is known after `result`. It includes the gaps between kernels that the host starts one by
        one, and the time to record a CUDA graph if the batch caused a recording.
        """
        if self._events is None:
            return None
        seconds = self._events.began.elapsed_time(self._events.computed) / 1e3
        return seconds + ((self._second and self._second.device_seconds) or 0.0)


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

    def __init__(self, net: SetDetector, device: str, top: int = 100, count: int | None = None):
        self.net, self.top = net, top
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.count = count_on(device, count)
        self.pads = self.pins = self.on_gpu
        self.enlarges = by_triton(self.device)
        self.ahead = 1 if self.on_gpu else 0
        self.canvases = canvas_rule(net.resize)
        self.detect = Graphed(self._detect, net.kept_positions) if self.on_gpu else self._detect
        self.copies = torch.cuda.Stream(self.device) if self.on_gpu else None
        self._likely = likely_sizes(net.resize) if self.on_gpu else [CPU_WARM_UP]
        self._lock = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names by number; "" is a number that stands for no class."""
        return self.net.labels

    @property
    def resize(self) -> ResizeRule:
        """The size to which an image must be resized."""
        return self.net.resize

    def canvas(self, size: Size) -> Size:
        """The canvas of an image of this resized size; on a CPU the image itself."""
        return self.canvases.canvas(*size) if self.pads else size

    def submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> PendingDetections:
        """Start the detection in a batch, see `BatchDetector.submit`."""
        return self._submit(pixels, valid, sizes, sources)

    def _submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> PendingDetections:
        given = (pixels, valid, sizes, sources)
        again = partial(self._submit_again, *given) if self.net.fallback else None
        return self._start(self.detect, *given, again)

    def _submit_again(
        self,
        pixels: Tensor,
        valid: Tensor | None,
        sizes: Tensor,
        sources: Tensor | None,
        wrong: Tensor,
    ) -> PendingDetections:
        """Start the detection by the fallback in the images that are `wrong`, beside blanks."""
        with torch.cuda.stream(self.copies):  # on which `pixels` may have been written
            pixels = torch.where(wrong.to(pixels.device)[:, None, None, None], pixels, 0)
        valid, sources = (
            None if areas is None else torch.where(wrong[:, None], areas, 1)
            for areas in (valid, sources)
        )
        return self._start(self._detect_by_fallback, pixels, valid, sizes, sources, None)

    @torch.inference_mode()
    def _start(
        self,
        detect: Callable[..., Tensor],
        pixels: Tensor,
        valid: Tensor | None,
        sizes: Tensor,
        sources: Tensor | None,
        again: Again | None,
    ) -> PendingDetections:
        if self.copies is None:
            with self._lock:
                return PendingDetections(detect(pixels, valid, sizes), None, again)
        with self._lock, torch.cuda.device(self.device):
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(self.copies):
                pixels = pixels.to(self.device, non_blocking=True)
                sizes = sizes.pin_memory().to(self.device, non_blocking=True)
                if valid is not None:
                    if sources is not None:
                        pixels = enlarge(pixels, valid, sources)
                    valid = valid.to(self.device, non_blocking=True)
            computing.wait_stream(self.copies)
            for tensor in (pixels, sizes, *(() if valid is None else (valid,))):
                tensor.record_stream(computing)  # the tensor was created on the other stream
            events = Events.create()
            events.began.record(computing)
            packed = detect(pixels, valid, sizes)
            events.computed.record(computing)
            back = torch.empty(packed.shape, pin_memory=True)
            back.copy_(packed, non_blocking=True)
            events.ready.record(computing)
        return PendingDetections(back, events, again)

    def _detect(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> Tensor:
        """Detections as (B, N, 6) fp32: score, label and corners in one tensor, for one copy."""
        return self._detect_with(self.net, pixels, valid, sizes)

    def _detect_by_fallback(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> Tensor:
        assert self.net.fallback is not None
        return self._detect_with(self.net.fallback(), pixels, valid, sizes)

    def _detect_with(
        self, net: SetDetector, pixels: Tensor, valid: Tensor | None, sizes: Tensor
    ) -> Tensor:
        found = net.detect(pixels, valid, sizes, self.top)
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
            sizes = torch.ones(self.count, 2, dtype=torch.int64)
            self._submit(pixels, valid, sizes, valid if self.enlarges else None).result()
        return bool(self._likely)

    def give_memory_back(self) -> None:
        """Free the memory of CUDA graphs, which only save time. For use after memory ran out."""
        if isinstance(self.detect, Graphed):
            with self._lock:
                self.detect.forget()
