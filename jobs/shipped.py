"""What a job takes along to a cluster: the code of this distribution, and nothing else."""

import shutil
from importlib.metadata import Distribution, distribution
from importlib.resources import as_file, files
from pathlib import Path

ROOMS = ("model", "pipeline", "jobs", "infra")
CODE = ("*.py", "*.json", "*.css", "*.j2", "*.yaml", "*.csv", "*.safetensors")
LEFT_OUT = ("__pycache__", "results")


def ship(folder: Path) -> None:
    """Copy the packages, and the distribution's name and version, into the empty `folder`.

    A process that has it on its path runs this code, whether or not the cluster has the
    distribution installed. The content is the same for the same code, so that Ray uploads it once.
    """
    for room in ROOMS:
        with as_file(files(room)) as source:
            for pattern in CODE:
                for file in sorted(source.rglob(pattern)):
                    below = file.relative_to(source)
                    if not set(below.parts) & set(LEFT_OUT):
                        target = folder / room / below
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, target)
    _name(distribution("detr-batch"), folder)


def _name(installed: Distribution, folder: Path) -> None:
    """Metadata by which `importlib.metadata` finds the version there."""
    info = folder / f"detr_batch-{installed.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(str(installed.metadata), encoding="utf-8")
