"""A user's own detector: the example of the documents, and modules that are not as they should."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.description import Load
from model.detectors import describe, load
from model.errors import CheckpointError, UnknownName
from model.image_detector import OneByOne
from model.named import refuse_unknown

README = Path(__file__).parents[2] / "model" / "README.md"
FIXED = """
class Fixed:
    labels = ["", "thing"]

    def detect(self, image):
        height, width = image.shape[:2]
        return [[0, 0, width, height]], [0.5], [1]


def make(device, weights=None):
    return Fixed()


def fail(device):
    raise ValueError("there is no such device")


def nothing(device):
    return 5


class Resized(Fixed):
    def resize(self, image):
        return image


def resized(device):
    return Resized()


def tuple_resized(device):
    detector = Fixed()
    detector.resize = (800, 1333)
    return detector
"""


def example() -> str:
    """The example of model/README.md."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "class RetinaNet" in block]
    assert len(found.splitlines()) <= 35
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.slow
def test_the_example_of_the_documents_detects(folder: Path) -> None:
    (folder / "retina_of_readme.py").write_text(example())
    name = "python:retina_of_readme:retinanet"
    described = describe(name, None)
    assert described.labels == ("", "cat", "dog") and described.precisions == ("fp32",)
    net = load(name, Load(None, described.weights, "cpu", "fp32"))
    assert isinstance(net, OneByOne)
    torch.save(vars(net.detector)["net"].state_dict(), folder / "w.pth")
    with_weights = describe(name, str(folder / "w.pth"))
    assert with_weights.weights != described.weights
    again = load(name, Load(str(folder / "w.pth"), with_weights.weights, "cpu", "fp32"))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), np.uint8))
    sizes = torch.tensor([[64, 80]])
    first, second = (one.submit(pixels, None, sizes).result() for one in (net, again))
    assert torch.equal(first.scores, second.scores) and torch.equal(first.boxes, second.boxes)


def test_another_source_is_another_detector(folder: Path) -> None:
    (folder / "fixed_one.py").write_text(FIXED)
    before = describe("python:fixed_one:make", None)
    assert before.labels == ("", "thing")
    (folder / "fixed_one.py").write_text(FIXED + "\n")
    after = describe("python:fixed_one:make", None)
    assert before.weights != after.weights
    with pytest.raises(CheckpointError, match="differs between nodes"):
        load("python:fixed_one:make", Load(None, before.weights, "cpu", "fp32"))


@pytest.mark.parametrize(
    ("name", "error", "line"),
    [
        ("python:fixed", UnknownName, "give python:package.module:function"),
        ("python::make", UnknownName, "give python:package.module:function"),
        ("python:fixed:two words", UnknownName, "give python:package.module:function"),
        ("python:no_such_module_here:make", UnknownName, "there is no module"),
        ("python:fixed.deeper:make", UnknownName, "there is no module"),
        ("python:fixed:other", UnknownName, "has no function 'other'"),
        ("python:fixed:Fixed", CheckpointError, r"failed: TypeError: .*takes no arguments"),
        ("python:fixed:fail", CheckpointError, "failed: ValueError: there is no such device"),
        ("python:fixed:nothing", CheckpointError, "lacks labels and detect"),
        ("python:fixed:resized", CheckpointError, "`resize` must be a ResizeRule"),
        ("python:fixed:tuple_resized", CheckpointError, "`resize` must be a ResizeRule"),
        ("python:folder:make", UnknownName, "has no function 'make'"),
        ("python:sys:exit", CheckpointError, "failed: SystemExit"),
        ("python:wrong:make", CheckpointError, "SyntaxError"),
        ("python:needy:make", CheckpointError, "needs surely_absent, which is not installed"),
    ],
)
def test_what_makes_no_detector_is_one_line(
    folder: Path, name: str, error: type[Exception], line: str
) -> None:
    (folder / "fixed.py").write_text(FIXED)
    (folder / "wrong.py").write_text("def make(:")
    (folder / "needy.py").write_text("import surely_absent")
    (folder / "folder").mkdir()
    refuse_unknown(name)  # only its form is looked at
    with pytest.raises(error, match=line) as caught:
        describe(name, None)
    assert "\n" not in str(caught.value)


def test_random_weights_are_for_named_models(folder: Path) -> None:
    (folder / "fixed_four.py").write_text(FIXED)
    with pytest.raises(UnknownName, match="--weights random is not for python:fixed_four:make"):
        describe("python:fixed_four:make", "random")


@pytest.mark.parametrize("labels", ["[]", "[1, 2]", "'thing'", "5"])
def test_labels_must_be_names(folder: Path, labels: str) -> None:
    source = FIXED.replace('["", "thing"]', labels)
    module = f"labelled_{abs(hash(labels))}"
    (folder / f"{module}.py").write_text(source)
    with pytest.raises(CheckpointError, match=r"must be a list of class names|not iterable"):
        describe(f"python:{module}:make", None)


def test_the_networks_of_a_detector_are_counted(folder: Path) -> None:
    (folder / "counted_net.py").write_text(
        "import torch\n"
        f"{FIXED}\n"
        "class Own(Fixed, torch.nn.Linear):\n    pass\n"
        "def attribute(device):\n"
        "    found = Fixed()\n"
        "    found.net, found.lazy = torch.nn.Linear(9, 10), torch.nn.LazyLinear(5)\n"
        "    return found\n"
        "def itself(device):\n    return Own(9, 10)\n"
    )
    for function, size in (("attribute", 400), ("itself", 400), ("make", 0)):
        assert describe(f"python:counted_net:{function}", None).weight_bytes == size
