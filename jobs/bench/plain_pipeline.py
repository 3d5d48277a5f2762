"""The script that a user would write instead: Ray Data with transformers' processor and model.

    python -m jobs.bench.plain_pipeline IMAGES OUTPUT MODEL DEVICE

It labels a folder of images with `jobs.bench.peers.peer` (random weights) into Parquet: path,
scores, labels and boxes of each image. It is the peer of `detr-batch bench pipeline`.
"""

import os
import sys
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy
from transformers import DeformableDetrImageProcessor

from jobs.bench.peers import peer

BATCH = 4


class Labeller:
    """transformers' processor and model, used as its documentation shows."""

    def __init__(self, model: str, device: str):
        if device == "cpu":  # one CPU of Ray would mean one thread; the peer may use all
            torch.set_num_threads(os.cpu_count() or 1)
        self.device = device
        self.processor = DeformableDetrImageProcessor()
        self.net: Any = peer(model).to(device)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        arrays = list(batch["image"])
        inputs = self.processor(images=arrays, return_tensors="pt").to(self.device)
        sizes = [array.shape[:2] for array in arrays]
        found = self.processor.post_process_object_detection(
            self.net(**inputs), threshold=0.0, target_sizes=sizes, top_k=100
        )
        columns = {
            name: [result[name].cpu().numpy().reshape(-1) for result in found]
            for name in ("scores", "labels", "boxes")
        }
        return {"path": batch["path"], **{k: np.stack(v) for k, v in columns.items()}}


def main(images: str, output: str, model: str, device: str) -> None:
    ray.init("local", include_dashboard=False, log_to_driver=False)
    on_gpu = device != "cpu"
    dataset = ray.data.read_images(images, include_paths=True, mode="RGB")
    dataset.map_batches(
        Labeller,
        fn_constructor_args=(model, device),
        batch_size=BATCH,
        num_cpus=0 if on_gpu else 1,
        num_gpus=1 if on_gpu else 0,
        compute=ActorPoolStrategy(size=1),
    ).write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
