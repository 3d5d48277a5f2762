"""The fingerprint: it differs where the model, its weights or its settings differ."""

import hashlib
import json
from dataclasses import asdict

from model.config import ModelConfig


def fingerprint(config: ModelConfig, weights: str, score_threshold: float) -> str:
    """16 hex digits over all that decides the labels. `weights` is a digest, or "random"."""
    document = {
        "config": asdict(config),
        "weights": weights,
        "score_threshold": score_threshold,
        "padding": "invariant",
        "resize": "pillow-bilinear",
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
