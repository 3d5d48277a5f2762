"""What batches run with: the options of the server, as far as the runs of `label` need them."""

import os
from dataclasses import dataclass

from jobs.label.options import LabelOptions
from jobs.serve.settings.options import ServeOptions
from jobs.serve.settings.settings import ApiSettings

# `label` takes thresholds below 1; a line that wants 1 gets the few boxes above this.
MOST_THRESHOLD = 0.999


@dataclass(frozen=True)
class BatchSettings:
    """The settings of all batches of a server."""

    api: ApiSettings
    label: LabelOptions  # of a run; INPUT, OUTPUT and the threshold are those of the batch
    model: str  # as clients name it
    on_cluster: bool  # whether runs are jobs of the cluster, or processes of this machine
    # CUDA_VISIBLE_DEVICES of the command. Ray hides all GPUs from actors that ask for none.
    gpus: str | None = None


def batch_settings(options: ServeOptions) -> BatchSettings:
    """The settings of a server. Call it in the process of the command."""
    label = LabelOptions(
        "",
        "",
        model=options.model,
        weights=options.weights,
        precision=options.precision,
        device=options.device,
        num_gpus=options.num_gpus,
        page=False,
    )
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return BatchSettings(options.api_settings(), label, options.model, bool(options.address), gpus)
