"""The stage that detects, with the calls of many requests at once."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from jobs.serve.engine.spec import EngineSpec
from pipeline.schema import OK, PREPARED
from pipeline.stages.detect import Detector
from pipeline.storage.errors import CommandFailed

FIRST_SIDE = 64  # pixels of the image that a detector computes before it is ready


class Detecting:
    """PREPARED -> DETECTED, with a detector that is ready: it has computed an image."""

    def __init__(self, spec: EngineSpec, niceness: int = 0):
        """`niceness` is added to that of this process, if it detects on CPUs.

        Raises CheckpointError for weights other than the command found.
        """
        if spec.detector.device == "cpu":
            os.nice(niceness)
        self._detector = self._make_detector(spec)
        self._threads = ThreadPoolExecutor(spec.detector.calls, "detecting")
        self._failure: Exception | None = None
        (row,) = self._detector(_first_image(spec)).to_pylist()
        if row["status"] != OK:
            raise CommandFailed(f"the detector cannot compute an image: {row['error']}")

    def _make_detector(self, spec: EngineSpec) -> Callable[[pa.Table], pa.Table]:
        return Detector(spec.detector)

    async def __call__(self, prepared: pa.Table) -> pa.Table:
        """Detect in images, together with those of other calls. Failed rows pass through.

        Raises what ended the detector, such as OutOfMemory. Then this replica is healthy no more.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._detector, prepared
            )
        except Exception as error:
            self._failure = error
            raise

    def check_health(self) -> None:
        """Raise what ended the detector: Ray Serve then replaces this replica."""
        if self._failure is not None:
            raise self._failure


def _first_image(spec: EngineSpec) -> pa.Table:
    """A PREPARED row of a black image."""
    decoding = spec.decoding
    rows, columns = decoding.resize.prepared_size(FIRST_SIDE, FIRST_SIDE, decoding.enlarge)
    row: dict[str, Any] = {
        "image_id": "first",
        "shard": "first",
        "index_in_shard": 0,
        "status": OK,
        "width": FIRST_SIDE,
        "height": FIRST_SIDE,
        "orientation": 1,
        "pixels": bytes(3 * rows * columns),
        "rows": rows,
        "columns": columns,
    }
    return pa.Table.from_pylist([row], schema=PREPARED)
