"""What a job takes along to a cluster: the code of this distribution, and nothing else."""

import shutil
from importlib.metadata import Distribution, distribution
from importlib.resources import as_file, files
from pathlib import Path

# As the wheel has them: what else lies in a checkout, or in infra/, is its owner's.
CODE = {
    "model": ("**/*.py", "shapes_tiny.safetensors", "ops/*.json"),
    "pipeline": ("**/*.py",),
    "jobs": ("**/*.py", "**/*.j2", "**/*.css"),
    "infra": ("__init__.py", "prices.yaml"),
}


def ship(folder: Path) -> None:
    """Copy the packages, and the distribution's name and version, into the empty `folder`.

    A process that has it on its path runs this code, whether or not the cluster has the
    distribution installed. The content is the same for the same code, so that Ray uploads it once.
    """
    for room, patterns in CODE.items():
        with as_file(files(room)) as source:
            for pattern in patterns:
                for file in sorted(source.glob(pattern)):
                    target = folder / room / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
    _name(distribution("detr-batch"), folder)


def _name(installed: Distribution, folder: Path) -> None:
    """Metadata by which `importlib.metadata` finds the version there."""
    info = folder / f"detr_batch-{installed.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(str(installed.metadata), encoding="utf-8")
