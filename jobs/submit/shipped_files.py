"""The files that a job takes to a cluster: the code of this distribution, and nothing else."""

import shutil
from importlib.metadata import Distribution, distribution
from importlib.resources import as_file, files
from pathlib import Path

# The files of the wheel. Other files of a checkout or of infra/ are private to their owner.
CODE = {
    "model": ("**/*.py", "shapes_tiny.safetensors", "ops/*.json"),
    "pipeline": ("**/*.py",),
    "jobs": ("**/*.py", "**/*.j2", "**/*.css", "serve/http/page/*", "label/canaries/scenes/*"),
    "infra": ("__init__.py", "prices.yaml"),
}


def ship(folder: Path) -> None:
    """Copy the packages, and the name and version of the distribution, into the empty `folder`.

    A process with `folder` on its path runs this code, whether or not the cluster has the
    distribution installed. The same code gives the same content, so Ray uploads it only once.
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
    """Write the metadata in which `importlib.metadata` finds the version."""
    info = folder / f"detr_batch-{installed.version}.dist-info"
    info.mkdir()
    metadata = installed.metadata
    fields = (f"{name}: {metadata[name]}" for name in ("Metadata-Version", "Name", "Version"))
    (info / "METADATA").write_text("\n".join([*fields, ""]), encoding="utf-8")
