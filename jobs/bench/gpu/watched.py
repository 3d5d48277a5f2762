"""A detector of `label` that logs the batches which it computes."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from jobs.bench.gpu.fill import BatchLog, watch_batches
from pipeline.dataflow import FlowSettings, label_shards
from pipeline.schema import Receipt, Work
from pipeline.stages.detect import Detector, DetectorSpec


class WatchedDetector:
    """PREPARED -> DETECTED as by `Detector`, with a `BatchLog` in a folder."""

    def __init__(self, spec: DetectorSpec, folder: str):
        self.detector = Detector(spec)
        if self.detector.refusal is None:
            watch_batches(self.detector.predictor, BatchLog(folder).add)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.detector(table)


def watch_detectors(folder: str) -> None:
    """Let the runs of `label` in this process have detectors that log into a folder."""
    from jobs.label import execution

    def label_watched(work: list[Work], settings: FlowSettings) -> Iterator[Receipt]:
        arguments = (*settings.arguments, folder)
        return label_shards(work, replace(settings, detector=WatchedDetector, arguments=arguments))

    vars(execution)["label_shards"] = label_watched  # a name that `label_images` looks up
