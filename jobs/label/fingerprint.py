"""What tells labels of one model, its weights and its settings from those of others."""

import hashlib
import json
from dataclasses import asdict

from model.config import DeformableDetrConfig


def fingerprint(config: DeformableDetrConfig, weights: str, score_threshold: float) -> str:
    """16 hex digits of all that decides an image's labels; `weights` is a digest, or "random"."""
    document = {
        "config": asdict(config),
        "weights": weights,
        "score_threshold": score_threshold,
        "padding": "invariant",
        "resize": "pillow-bilinear",
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
