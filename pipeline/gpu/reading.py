"""What a detector tells of its GPU beside the rows that it returns."""

from dataclasses import dataclass

import pyarrow as pa

# What a detector measured of its GPU since its last reading (gpu/meter.py). A figure is null
# where the driver does not report it.
GPU = pa.struct(
    [
        pa.field("detector", pa.string()),  # the actor that measured; several may share a GPU
        pa.field("device", pa.string()),  # UUID
        pa.field("name", pa.string()),
        pa.field("samples", pa.int64()),
        pa.field("use", pa.float64()),  # share of the time in which it computed, the mean
        pa.field("memory", pa.int64()),  # bytes in use, by all programs; the greatest sample
        pa.field("total_memory", pa.int64()),  # bytes
        pa.field("watts", pa.float64()),  # the mean
        # Energy at the start of the detector and now: of the GPU's own counter, which all detectors
        # share, or, if it has none, summed by this detector from samples of its power.
        pa.field("joules_before", pa.float64()),
        pa.field("joules", pa.float64()),
        pa.field("is_counter", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class GpuReading:
    """The column `gpu` of DETECTED as an object."""

    detector: str
    device: str
    name: str
    samples: int
    use: float | None
    memory: int | None
    total_memory: int | None
    watts: float | None
    joules_before: float | None
    joules: float | None
    is_counter: bool
