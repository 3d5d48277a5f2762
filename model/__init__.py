"""Deformable DETR for inference and training: `create_model` is the way in.

The names are loaded on first use, so that torch-free parts (`model.resize`) import fast on CPU
workers that never run the detector.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.zoo import create_model

__all__ = ["create_model"]


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from model.zoo import create_model

        return create_model
    raise AttributeError(f"module 'model' has no attribute {name!r}")
