"""The options of `detr-batch label`, and the check of their values."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.accounting.node_hours import Rates
from jobs.accounting.prices import machine
from jobs.boxes.options import OTHER_SCORES, BoxOptions
from jobs.cluster.request import ClusterRequest, cluster_request
from jobs.label.budget_options import BudgetOptions
from jobs.label.canaries.options import CanaryOptions
from jobs.label.carry_options import CarryOptions
from jobs.label.decode_options import DecodeOptions
from jobs.label.notify.options import NotifyOptions
from jobs.label.tile_options import TileOptions
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask

DEFAULT_MODEL = "deformable-detr"  # of an OUTPUT without labels
# What several commands say of the same options.
MODEL = (
    "a name of `detr-batch models`, hf:FOLDER_OR_ID of transformers, or "
    "python:package.module:function of your own"
)
WEIGHTS = {
    "help": "file, URL (with #sha256=... checked), hub id, name of a model, 'packaged' or 'random'"
}
PRECISION = {
    "choices": ("auto", "fp32", "bf16", "fp16", "mixed", "int8"),
    "help": "what detectors compute in; auto: bf16 where the hardware multiplies it; mixed: the "
    "trunk in bf16, encoder and decoder in fp16, or bf16 where fp16 overflows; int8, on GPUs: "
    "bf16, but the encoder's feed-forward networks in int8",
}
DEVICE = {
    "choices": ("auto", "cpu", "cuda"),
    "help": "what detectors run on; auto: GPUs where there are any",
}
ADDRESS = {
    "environment": "RAY_ADDRESS",
    "help": "a Ray cluster (default: $RAY_ADDRESS, else a local one for this command alone)",
}


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """Prices of the machines."""

    instance_type: str | None = field(
        default=None,
        metadata={"help": "machines this runs on, for the report: see detr-batch prices"},
    )
    cpu_instance_type: str | None = field(
        default=None, metadata={"help": "those without a GPU, where a cluster has both"}
    )
    spot: bool = field(default=False, metadata={"help": "they cost the spot price"})
    usd_per_hour: float | None = field(
        default=None, metadata={"help": "price of all that runs this, instead"}
    )

    def check_prices(self) -> None:
        """Raise InputError for prices that are wrong or contradict one another."""
        if self.usd_per_hour is not None and self.instance_type:
            raise InputError("--usd-per-hour and --instance-type both name a price: give one")
        if self.cpu_instance_type and not self.instance_type:
            raise InputError("--cpu-instance-type names the nodes beside those of --instance-type")
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < math.inf:
            raise InputError(f"--usd-per-hour {self.usd_per_hour:g}: give a price of 0 or more")
        self.rates()

    def rates(self) -> Rates:
        """The prices for an hour. Raises InputError for a machine that has no price."""
        return Rates(
            self.usd_per_hour,
            machine(self.instance_type) if self.instance_type else None,
            machine(self.cpu_instance_type, "--cpu-instance-type")
            if self.cpu_instance_type
            else None,
            self.spot,
        )


@dataclass(frozen=True)
class LabelOptions(
    PriceOptions,
    TileOptions,
    BoxOptions,
    CarryOptions,
    DecodeOptions,
    BudgetOptions,
    CanaryOptions,
    NotifyOptions,
):
    """The options of the command line. `check` validates them."""

    input: str = field(
        metadata={
            "positional": True,
            "help": "images, .tar shards, Parquet files, or a list of URLs",
        }
    )
    output: str = field(metadata={"positional": True, "help": "folder for the tables"})
    address: str | None = field(default=None, metadata=ADDRESS)
    model: str | None = field(
        default=None,
        metadata={"help": f"{MODEL} (default: that of the labels in OUTPUT, else {DEFAULT_MODEL})"},
    )
    weights: str | None = field(default=None, metadata=WEIGHTS)
    score_threshold: float = field(
        default=0.3,
        metadata={
            "help": "least score of a detection; 0 keeps the best 100",
            "other_flags": OTHER_SCORES,
        },
    )
    format: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "images", "tar", "parquet", "urls"),
            "help": "what lies under INPUT",
        },
    )
    image_column: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "column of Parquet files that holds the images; a.b is field b of column a "
            "(default: chosen by names and by first bytes)",
        },
    )
    id_column: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "column of Parquet files that names the images: texts, integers or UUIDs "
            "(default: image_id, id, __key__ or key, else the number of the row)",
        },
    )
    input_access: str | None = field(
        default=None,
        metadata={
            "choices": ("anonymous", "requester-pays"),
            "help": "ask the stores of INPUT without credentials (public buckets), or as one who "
            "pays (S3, GCS); OUTPUT's store is asked with credentials",
        },
    )
    limit: int | None = field(default=None, metadata={"help": "label at most this many images"})
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "images in one forward pass of a GPU (default: 8); on CPUs images go one by one"
        },
    )
    precision: str = field(default="auto", metadata=PRECISION)
    device: str = field(default="auto", metadata=DEVICE)
    num_gpus: str | None = field(
        default=None,
        metadata={
            "help": "detectors on GPUs, or a range like 2-8 (default: 1, where there are any)"
        },
    )
    max_detectors: int | None = field(
        default=None,
        metadata={
            "help": "most detectors at a time (default: one for each core, or as --num-gpus says)"
        },
    )
    detect_on: str | None = field(
        default=None,
        metadata={"metavar": "KEY=VALUE", "help": "label of the nodes of Ray that detect"},
    )
    prepare_on: str | None = field(
        default=None,
        metadata={
            "metavar": "KEY=VALUE",
            "help": "label of those that do all else (default: any without an accelerator, where "
            "there are such)",
        },
    )
    max_failed_fraction: float = field(
        default=1.0,
        metadata={
            "help": "a larger share of failed images is exit code 3, and so are all (default: 1)"
        },
    )
    page: bool = field(default=True, metadata={"help": "leave report.html out: 3 s of a CPU"})
    single_writer: bool = field(
        default=False,
        metadata={
            "help": "nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs "
            "apart"
        },
    )
    keep_replaced: float = field(
        default=0.0,
        metadata={
            "metavar": "HOURS",
            "help": "let files that --relabel replaces stay so long, for readers that have them "
            "open",
        },
    )
    relabel: bool = field(
        default=False, metadata={"help": "replace the labels that OUTPUT has of INPUT"}
    )
    retry_failed: bool = field(
        default=False,
        metadata={
            "help": "also label again what failed for reasons outside the image: unreadable, "
            "address_not_allowed, timed_out, worker_crash"
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "print the plan; touch nothing"})

    def check(self) -> None:
        """Raise InputError for values that are wrong on every machine."""
        if self.model is not None:
            from model.named import refuse_unknown  # it would delay the help

            refuse_unknown(self.model)
        if not 0 <= self.score_threshold < 1:
            raise InputError(f"--score-threshold {self.score_threshold}: give 0 to below 1")
        if not 0 <= self.max_failed_fraction <= 1:
            raise InputError(f"--max-failed-fraction {self.max_failed_fraction}: give 0 to 1")
        if self.relabel and self.limit is not None:
            raise InputError("--relabel with --limit would drop the labels of all other images")
        self.check_prices()
        has_price = self.instance_type is not None or bool(self.usd_per_hour)
        self.check_budget(has_price, self.relabel, self.dry_run)
        self.check_boxes()
        self.check_carry()
        self.check_tiles()
        self.check_decode(self.device)
        self.check_canaries()
        for name in ("batch_size", "limit", "max_detectors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        self.machines()

    def machines(self) -> ClusterRequest:
        """The machines that the run requests. Raises InputError for wrong values."""
        request = cluster_request(
            self.device,
            self.num_gpus,
            self.model,
            self.address,
            self.detect_on,
            self.prepare_on,
            self.max_detectors,
        )
        return self.with_gpus(request)

    def without_secrets(self, source: str) -> dict[str, Any]:
        """The fields for run.json: INPUT is its canonical URL `source`, other URLs are masked."""
        given = asdict(self)
        for name in ("output", "weights", "address", "canaries"):
            given[name] = given[name] and mask(given[name])
        return {**given, **self.shown_receivers(), "input": source}
