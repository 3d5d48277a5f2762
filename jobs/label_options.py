"""The options of `detr-batch label`: what they mean, and which make no sense."""

import re
import socket
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

import torch

from jobs.cost import Rates
from jobs.cost.prices import machine
from jobs.node_labels import selector
from model.zoo import resolved_precision
from pipeline.storage import InputError

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class LabelOptions:
    """The options of the command line, checked by `check`."""

    input: str
    output: str
    model: str = "deformable-detr"
    weights: str | None = None
    score_threshold: float = 0.3
    format: str = "auto"
    limit: int | None = None
    batch_size: int = 8
    precision: str = "auto"
    device: str = "auto"
    num_gpus: str = "1"
    detect_on: str | None = None
    prepare_on: str | None = None
    address: str | None = None
    max_failed_fraction: float = 1.0
    usd_per_hour: float | None = None
    instance_type: str | None = None
    cpu_instance_type: str | None = None
    spot: bool = False
    page: bool = True
    relabel: bool = False
    single_writer: bool = False
    keep_replaced: float = 0.0  # hours
    dry_run: bool = False

    def check(self) -> None:
        """InputError for values that cannot be meant, or not on this machine."""
        self.check_values()
        if self.address and self.address != "auto":
            check_reachable(self.address)
        gpus = torch.cuda.device_count()
        if self.device == "cuda" and not self.address and not gpus:
            raise InputError(
                "--device cuda: this machine has no GPU that torch can use; "
                "pass --device cpu, or --address of a cluster that has one"
            )
        fewest, _ = self.gpus()
        if self.device != "cpu" and not self.address and 0 < gpus < fewest:
            raise InputError(f"--num-gpus {self.num_gpus}: this machine has {gpus}")

    def check_values(self) -> None:
        """InputError for values that cannot be meant on any machine."""
        if not 0 <= self.score_threshold < 1:
            raise InputError(f"--score-threshold {self.score_threshold}: give 0 to below 1")
        if not 0 <= self.max_failed_fraction <= 1:
            raise InputError(f"--max-failed-fraction {self.max_failed_fraction}: give 0 to 1")
        if self.usd_per_hour is not None and self.instance_type:
            raise InputError("--usd-per-hour and --instance-type both name a price: give one")
        if self.cpu_instance_type and not self.instance_type:
            raise InputError("--cpu-instance-type names the nodes beside those of --instance-type")
        self.rates()
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        self.gpus()
        selector(self.detect_on)
        selector(self.prepare_on)

    def words(self, address: str) -> list[str]:
        """The arguments that `label` is given on the cluster at `address`: what is not default."""
        words = [self.input, self.output, "--address", address]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("input", "output", "address") or value == field.default:
                continue
            option = f"--{field.name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(option if value else f"--no-{field.name}")
            else:
                words += [option, str(value)]
        return words

    def gpus(self) -> tuple[int, int]:
        """Fewest and most detectors on GPUs: "4", or "2-8"."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.num_gpus))
        fewest = int(found[1]) if found else 0
        most = int(found[2] or fewest) if found else 0
        if not 1 <= fewest <= most:
            raise InputError(f"--num-gpus {self.num_gpus}: give a number, or a range like 2-8")
        return fewest, most

    def resolved_device(self, cluster_has_gpus: bool) -> str:
        """Where detectors run. "auto": on GPUs where there are any.

        A cluster that makes its GPU nodes on demand has none yet: name "cuda" there.
        """
        if self.device != "auto":
            return self.device
        here = not self.address and torch.cuda.is_available()
        return "cuda" if cluster_has_gpus or here else "cpu"

    def resolved_precision(self, device: str) -> str:
        """What detectors compute in, as far as this machine can tell for them."""
        if self.precision == "auto" and device == "cuda" and not torch.cuda.is_available():
            return "the best precision of its GPUs"
        return resolved_precision(self.precision, device)

    def rates(self) -> Rates:
        """What an hour costs; InputError for a machine that has no price."""
        return Rates(
            self.usd_per_hour,
            machine(self.instance_type) if self.instance_type else None,
            machine(self.cpu_instance_type, "--cpu-instance-type")
            if self.cpu_instance_type
            else None,
            self.spot,
        )


def check_reachable(address: str) -> None:
    """InputError unless something listens at a Ray address: Ray itself would try for ten minutes.

    `address` is `host:port` or `ray://host:port`.
    """
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if place.hostname is None or place.port is None:
            raise ValueError("give host:port, ray://host:port or auto")
        socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error
