"""The option that says where JPEGs are decoded, and the check of its value."""

from dataclasses import dataclass, field, replace

from jobs.cluster.request import ClusterRequest
from pipeline.storage.errors import InputError

CPU, GPU = "cpu", "gpu"


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Where JPEGs are decoded."""

    decode: str = field(
        default=CPU,
        metadata={
            "choices": (CPU, GPU),
            "help": "where JPEGs are decoded; gpu: by nvJPEG in the process of their detector, for "
            "machines with few cores for each GPU and images that you trust; labels differ "
            "slightly, and no GPU has measured it",
        },
    )

    @property
    def leaves_jpegs(self) -> bool:
        """Whether detectors decode JPEGs."""
        return self.decode == GPU

    def check_decode(self, device: str) -> None:
        """Raise InputError if there can be no GPU to decode on."""
        if self.leaves_jpegs and device == "cpu":
            raise InputError("--decode gpu --device cpu: leave out one of the two options")

    def check_decode_of(self, model: str, is_alone: bool) -> None:
        """Raise InputError for a model that gets images one by one, from the host."""
        if self.leaves_jpegs and is_alone:
            raise InputError(
                f"--decode gpu: {model} gets its images from CPUs, one by one: leave the option out"
            )

    def with_gpus(self, request: ClusterRequest) -> ClusterRequest:
        """The request, which wants GPUs if they are to decode."""
        if not self.leaves_jpegs or request.device != "auto":
            return request
        return replace(request, device="cuda", gpu_option="--decode gpu")
