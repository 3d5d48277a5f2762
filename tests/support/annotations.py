"""Annotation files in COCO's format for tests of `evaluate`."""

import json
from pathlib import Path
from typing import Any

LABELS = ("", "cat", "dog")  # of the OUTPUTs that they are compared with
CAT = (1, 0.9, 10.0, 10.0, 60.0, 60.0)  # a box there: the annotated cat


def annotate_cats(*names: str, **changes: Any) -> dict[str, Any]:
    """Annotations of one cat in each image, without areas."""
    return {
        "images": [{"id": 7 + i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": 3, "name": "Cat"}, {"id": 4, "name": "bird"}],
        "annotations": [
            {"id": i, "image_id": 7 + i, "category_id": 3, "bbox": [10, 10, 50, 50], "iscrowd": 0}
            for i in range(len(names))
        ],
        **changes,
    }


def write_truth(folder: Path, content: Any) -> str:
    """Write an annotation file below `folder`; return its path."""
    file = folder / "truth.json"
    file.write_text(json.dumps(content))
    return str(file)
