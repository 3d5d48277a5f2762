"""OUTPUT lies on stores that create an object only where there is none."""

import pytest

from jobs.output.output_writer import OutputWriter
from pipeline.storage.files import InputError


@pytest.mark.parametrize("url", ["https://host/labels", "HF://datasets/user/labels"])
def test_labels_are_not_written_to_stores_for_reading(url: str) -> None:
    with pytest.raises(InputError, match="can only be read: labels are written to a disk"):
        OutputWriter(url, single_writer=True)
