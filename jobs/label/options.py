"""The options of `detr-batch label`: what they mean, and which make no sense."""

from dataclasses import dataclass, fields

from jobs.accounting.node_hours import Rates
from jobs.accounting.prices import machine
from jobs.cluster.request import ClusterRequest, cluster_request
from jobs.output.known import LabelRequest
from pipeline.storage.files import InputError, canonical


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
        self.machines()

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

    def machines(self) -> ClusterRequest:
        """What the run asks of machines. InputError for what cannot be meant."""
        return cluster_request(
            self.device,
            self.num_gpus,
            self.model,
            self.address,
            self.detect_on,
            self.prepare_on,
        )

    def labels(self, fingerprint: str) -> LabelRequest:
        """Which labels the run would add, by a model of that fingerprint."""
        return LabelRequest(
            canonical(self.input), self.model, self.score_threshold, fingerprint, self.relabel
        )

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
