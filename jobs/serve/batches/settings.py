"""What batches run with: the options of the server, as far as the runs of `label` need them."""

from dataclasses import dataclass

from jobs.label.options import LabelOptions
from jobs.serve.settings.options import ServeOptions
from jobs.serve.settings.settings import ApiSettings
from jobs.serve.settings.sharing import NOTHING_RESERVED, BatchShare

# `label` takes thresholds below 1; a line that wants 1 gets the few boxes above this.
MOST_THRESHOLD = 0.999


@dataclass(frozen=True)
class BatchSettings:
    """The settings of all batches of a server."""

    api: ApiSettings
    label: LabelOptions  # of a run; INPUT, OUTPUT and the threshold are those of the batch
    model: str  # as clients name it
    on_cluster: bool  # whether runs are jobs of the cluster, or processes of this machine
    share: BatchShare = NOTHING_RESERVED


def batch_settings(options: ServeOptions, share: BatchShare = NOTHING_RESERVED) -> BatchSettings:
    """The settings of a server."""
    label = LabelOptions(
        "",
        "",
        model=options.model,
        weights=options.weights,
        precision=options.precision,
        device=options.device,
        num_gpus=str(share.detectors) if share.on_gpus else options.num_gpus,
        max_detectors=None if share.on_gpus else share.detectors,
        page=False,
    )
    return BatchSettings(options.api_settings(), label, options.model, bool(options.address), share)
