"""A simulated detector: it waits a fixed time for each image, as for a device, and uses no CPU."""

import time
from datetime import UTC, datetime

import pyarrow as pa

from pipeline.schema import DETECTED, OK


class SimulatedDetector:
    """PREPARED -> DETECTED without boxes, after a wait of `seconds` for each image."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.drop_columns(["pixels", "rows", "columns"]).to_pylist()
        for row in rows:
            took = self.seconds if row["status"] == OK else 0.0
            time.sleep(took)
            now = datetime.now(UTC)
            row.update(boxes=[], detect_seconds=took, computation="simulated", processed_at=now)
        return pa.Table.from_pylist(rows, schema=DETECTED)
