"""Teach the compact trunk to name shapes in small crops, before a detector learns to find them.

The published models start from a trunk that learned ImageNet; the embedded one's learns this way:
a crop costs a hundredth of a scene, and shows an object all the same.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from jobs.scenes import render_scene
from model.backbone import Backbone
from model.preprocess import batch_images

SCENE_SIDE = 256  # pixels
CROP_SIDES = (48, 64, 64, 96)  # pixels; all crops of a batch have one
CROWD = 10  # objects at most in a scene that crops are taken from
MARGINS = (1.1, 1.6)  # a crop's side over its object's longer extent: one object fills it
MIN_EXTENT = 14  # pixels; smaller objects are left out
SCENES = 12  # a batch
LEARNING_RATE = 1e-3
Crops = tuple[Tensor, Tensor]  # (n, side, side, 3) uint8 and labels (n,)


class ObjectCrops(Dataset[Crops]):
    """The objects of endless rendered scenes, each in a crop of its own."""

    def __init__(self, seed: int, length: int):
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Crops:
        rng = np.random.default_rng([self.seed, 2, index])
        scene = render_scene(rng, SCENE_SIDE, SCENE_SIDE, CROWD)
        picture = Image.fromarray(scene.pixels)
        size = (CROP_SIDES[index // SCENES % len(CROP_SIDES)],) * 2
        crops, labels = [torch.empty(0, *size, 3, dtype=torch.uint8)], []
        for box, label in zip(scene.boxes, scene.labels.tolist(), strict=True):
            extent = (box[2:] - box[:2]).max()
            if extent < MIN_EXTENT:
                continue
            side = min(extent * rng.uniform(*MARGINS), SCENE_SIDE)
            corner = (box[:2] + box[2:] - side) / 2 + rng.uniform(-0.1, 0.1, 2) * extent
            left, top = np.clip(corner, 0, SCENE_SIDE - side)
            window = (left, top, left + side, top + side)
            crop = np.array(picture.resize(size, Image.Resampling.BILINEAR, window))
            crops.append(torch.from_numpy(crop)[None])
            labels.append(label)
        return torch.cat(crops), torch.tensor(labels, dtype=torch.int64)


def pretrain(trunk: Backbone, steps: int, classes: int, seed: int, device: str) -> float:
    """Train `trunk` in place with a linear classifier on the mean feature of each of its levels.

    Returns the share of crops that the last level named rightly in the last hundred steps.
    """
    heads = nn.ModuleList(nn.Linear(c, classes) for c in trunk.body.channels).to(device)
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=1e-2, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    loader = DataLoader(
        ObjectCrops(seed, steps * SCENES), batch_size=SCENES, collate_fn=list, num_workers=1
    )
    right = torch.zeros(len(heads))
    trunk.train()
    for step, crops in enumerate(loader, 1):
        pixels, _ = batch_images([crop for some, _ in crops for crop in some], device)
        labels = torch.cat([named for _, named in crops]).to(device)
        features = trunk(pixels)
        logits = [head(level.mean((2, 3))) for head, level in zip(heads, features, strict=True)]
        loss = torch.stack([F.cross_entropy(level, labels) for level in logits]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        now = torch.stack([(level.argmax(1) == labels).float().mean() for level in logits])
        right += (now.cpu() - right) / min(step, 100)
        if step % 100 == 0:
            shares = ", ".join(f"{share:.2f}" for share in right.tolist())
            print(f"pretraining step {step}: named rightly by level {shares}", flush=True)
    return float(right[-1])
