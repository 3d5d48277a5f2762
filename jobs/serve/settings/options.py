"""The options of `detr-batch serve`, and the check of their values."""

import ipaddress
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from jobs.boxes.options import OTHER_SCORES
from jobs.cluster.request import ClusterRequest, cluster_request
from jobs.label.options import ADDRESS, DEFAULT_MODEL, DEVICE, MODEL, PRECISION, WEIGHTS
from pipeline.storage.errors import InputError

if TYPE_CHECKING:  # they import large packages, which would delay the help
    from jobs.serve.settings.settings import ApiSettings

PORT = 8000


@dataclass(frozen=True, kw_only=True)
class ActionOptions:
    """What is done with an endpoint on a cluster. By default it runs as long as the command."""

    detach: bool = field(
        default=False,
        metadata={"one_of": "action", "help": "leave the endpoint on the cluster, and return"},
    )
    status: bool = field(
        default=False,
        metadata={"one_of": "action", "help": "of the endpoint that runs on the cluster"},
    )
    stop: bool = field(
        default=False,
        metadata={"one_of": "action", "help": "end the endpoint that runs on the cluster"},
    )


@dataclass(frozen=True)
class ServeOptions(ActionOptions):
    """The options of the command line. `check` validates them."""

    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": f"{MODEL}; clients give the same name"},
    )
    weights: str | None = field(default=None, metadata=WEIGHTS)
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen at; others than loopback want --keys"},
    )
    port: int = field(default=PORT, metadata={"help": "port to listen at; 0: any free one"})
    keys: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE_OR_URL",
            "help": "the keys that clients need, from `detr-batch serve-keys` (default: no key is "
            "needed)",
        },
    )
    batches: str | None = field(
        default=None,
        metadata={
            "metavar": "URL",
            "help": "folder or s3:// prefix for files and batches (default: neither is offered)",
        },
    )
    batch_detectors: int | None = field(
        default=None,
        metadata={
            "help": "detectors for batches alone, which requests do not get (default: a quarter; "
            "on CPUs of one machine both share the cores)"
        },
    )
    score_threshold: float = field(
        default=0.3,
        metadata={
            "help": "least score of a detection where a request names none",
            "other_flags": OTHER_SCORES,
        },
    )
    usd_per_1000_images: float | None = field(
        default=None, metadata={"help": "price that `usage` of answers is computed from"}
    )
    allow_image_hosts: tuple[str, ...] = field(
        default=(),
        metadata={
            "parse": str,
            "metavar": "HOST",
            "help": "a private host, or s3://bucket, from which requests may name images; may be "
            "repeated (default: public hosts alone)",
        },
    )
    allow_batch_outputs: tuple[str, ...] = field(
        default=(),
        metadata={
            "parse": str,
            "metavar": "URL",
            "help": "s3://bucket/prefix below which batches may label whole lakes into an OUTPUT; "
            "may be repeated (default: none)",
        },
    )
    max_images: int = field(default=64, metadata={"help": "most images of a request"})
    max_image_bytes: int = field(default=20 << 20, metadata={"help": "most bytes of an image"})
    max_pixels: int = field(default=100_000_000, metadata={"help": "most pixels of an image"})
    max_request_pixels: int = field(
        default=2_000_000_000, metadata={"help": "most pixels of all images of a request"}
    )
    max_stored_bytes: int = field(
        default=10 << 30,
        metadata={"help": "most bytes of all files of a scope, the answers of batches among them"},
    )
    max_queue: int = field(
        default=256,
        metadata={"help": "most images that wait or are computed; what is more is answered 503"},
    )
    precision: str = field(default="auto", metadata=PRECISION)
    device: str = field(default="auto", metadata=DEVICE)
    num_gpus: str | None = field(
        default=None,
        metadata={
            "help": "detectors on GPUs, or on a cluster a range like 1-8, by demand (default: 1, "
            "where there are any)"
        },
    )
    address: str | None = field(default=None, metadata=ADDRESS)

    def check(self) -> None:
        """Raise InputError for values that are wrong on every machine."""
        from model.named import refuse_unknown  # it would delay the help

        refuse_unknown(self.model)
        if not 0 <= self.score_threshold < 1:
            raise InputError(f"--score-threshold {self.score_threshold}: give 0 to below 1")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: give 0 to 65535")
        price = self.usd_per_1000_images
        if price is not None and not 0 <= price < math.inf:
            raise InputError(f"--usd-per-1000-images {price:g}: give a price of 0 or more")
        for name in (
            "max_images",
            "max_image_bytes",
            "max_pixels",
            "max_stored_bytes",
            "max_queue",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        if self.batch_detectors is not None and self.batch_detectors < 1:
            raise InputError("--batch-detectors must be at least 1")
        if self.batch_detectors is not None and self.batches is None:
            raise InputError("--batch-detectors is for --batches: give both, or neither")
        if self.max_queue < self.max_images:
            raise InputError(
                f"--max-queue {self.max_queue} would refuse every request of --max-images "
                f"{self.max_images}: give at least as many"
            )
        if self.max_request_pixels < self.max_pixels:
            raise InputError(
                f"--max-request-pixels {self.max_request_pixels} would refuse images of "
                f"--max-pixels {self.max_pixels}: give at least as many"
            )
        if self.keys is None and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} can be reached from other machines, and nobody would need a "
                "key: give --keys FILE_OR_URL (`detr-batch serve-keys add` makes it)"
            )
        for name in (one.name for one in fields(ActionOptions)):
            if getattr(self, name) and not self.address:
                raise InputError(f"--{name} is for a cluster: give --address, or leave it out")
        self.api_settings()
        self.machines()

    def api_settings(self) -> "ApiSettings":
        """The settings of the HTTP side. Raises InputError for hosts that are none."""
        from jobs.serve.settings.settings import ApiSettings
        from pipeline.storage.image_hosts import ImageHosts

        return ApiSettings(
            self.score_threshold,
            self.usd_per_1000_images,
            self.keys,
            ImageHosts.of(self.allow_image_hosts),
            self.max_images,
            self.max_image_bytes,
            self.max_pixels,
            self.max_request_pixels,
            self.max_stored_bytes,
            bodies_at_once=max(1, self.max_queue // 2),
            images_at_once=max(1, self.max_queue // 2),
            batch_outputs=ImageHosts.of(self.allow_batch_outputs).entries,
        )

    def machines(self) -> ClusterRequest:
        """The machines that the endpoint requests. Raises InputError for wrong values."""
        return cluster_request(self.device, self.num_gpus, self.model, self.address)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
