"""Images for tests of accounting."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos_of_noise(tmp_path: Path) -> Path:
    """A folder with two images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
