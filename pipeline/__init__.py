"""The dataflow of `label`, and `load`: a detector for single images, without Ray.

`load` is loaded on first use, so that parts without torch import fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.local import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from pipeline.local import load

        return load
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
