"""CSV in the columns of supervision's CSVSink.

Each box has a row, and each image without boxes has one row.
"""

import csv
from typing import TextIO

from jobs.exports.reader import Labels

COLUMNS = (
    *("x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id"),
    *("image", "class_name", "shard"),
)


def write(labels: Labels, file: TextIO) -> None:
    """Write all labels; `image` is the unchanged image_id, a join key and not a file name."""
    table = csv.writer(file)
    table.writerow(COLUMNS)
    for image in labels.images():
        if not image.boxes:
            table.writerow([*[""] * 7, image.image_id, "", image.shard])
        for box in image.boxes:
            corners = (box.x_min, box.y_min, box.x_max, box.y_max)
            table.writerow(
                [
                    *(round(value, 4) for value in corners),
                    *(box.label_id, round(box.score, 8), "", image.image_id, box.label),
                    image.shard,
                ]
            )
