"""The fingerprint: it differs where the model, its weights or its settings differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(
    identity: Mapping[str, Any],
    weights: str,
    score_threshold: float,
    choices: Mapping[str, Any] | None = None,
) -> str:
    """16 hex digits over all that decides the labels, see `model.description.Description`.

    `choices` are further options that decide them, without those that have their default: so the
    fingerprint of earlier versions, which did not have these options, stays.
    """
    document = {
        "config": identity,
        "weights": weights,
        "score_threshold": score_threshold,
        "padding": "invariant",
        "resize": "pillow-bilinear",
        **(choices or {}),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
