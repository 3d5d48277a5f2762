"""Lakes that harm, that change while they are read, or that lead elsewhere."""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import save_weights
from model.zoo import create_model
from tests.chaos.commands import ISOLATED, RAY
from tests.chaos.compare import Tables, read_tables
from tests.chaos.harness import Lab, NotPossible
from tests.chaos.lake import encoded_image, image_of_one_colour, write_images, write_tar


@dataclass(frozen=True)
class Planted:
    """A file that does harm, and the status that its row must have."""

    name: str
    content: bytes
    status: str


HARMS_DECODER = (
    Planted("crash.jpg", b"FAULT-CRASH", "worker_crash"),
    Planted("leave.jpg", b"FAULT-LEAVE", "worker_crash"),
)
HARMS_DETECTOR = (
    Planted("end.png", image_of_one_colour((255, 0, 255)), "worker_crash"),
    Planted("fail.png", image_of_one_colour((0, 255, 255)), "detector_error"),
)


def own_lake(lab: Lab) -> Path:
    """A lake of this fault alone, which starts from an empty OUTPUT."""
    lake = lab.folder / "lake"
    write_images(lake, range(5))
    write_tar(lake / "b.tar", range(10, 13))
    return lake


def calm_label(lab: Lab, source: Path, *words: str, how: str = "") -> tuple[Tables, list[str]]:
    """The tables and steps of a run over this lake that nothing disturbs."""
    disturbed = lab.output
    lab.output = str(lab.folder / f"calm-{len(lab.commands)}")
    command = lab.start("label", source=str(source), words=words, how=how)
    assert lab.finish(command) == 0, command.said()
    tables = read_tables(lab.output, latest=True)
    lab.output = disturbed
    return tables, command.steps()


def first_step(steps: Iterable[str], text: str) -> int:
    return next(number for number, step in enumerate(steps, 1) if text in step)


def next_night_finds_nothing(lab: Lab, source: Path) -> None:
    said = lab.run("label", source=str(source)).said()
    assert "nothing new" in said, said
    lab.run("verify")
    lab.is_tidy()


def statuses(output: str) -> dict[str, str]:
    """By the last part of its URI, the status of each image."""
    tables = read_tables(output, latest=True)
    return {str(rows[0][0][0]).rsplit("/", 1)[-1]: str(rows[0][0][1]) for rows in tables.values()}


def harmful_images(lab: Lab) -> None:
    """Files that harm among good ones: each is one row, and all others are labelled.

    With Ray, by detectors that take two calls at once, and in every other turn one.
    """
    lake = lab.folder / "lake"
    good = int(lab.fault.parameter)
    write_images(lake, range(good))
    planted = HARMS_DECODER + (HARMS_DETECTOR if lab.fault.ray else ())
    for file in planted:
        (lake / file.name).write_bytes(file.content)
    calls = 1 + good // 4 % 2
    how = RAY if lab.fault.ray else ISOLATED
    command = lab.start("label", source=str(lake), how=how, DETR_BATCH_CALLS=str(calls))
    assert lab.finish(command) == 0, command.said()
    expected = {f"{index:04}.png": "ok" for index in range(good)}
    expected |= {file.name: file.status for file in planted}
    found = statuses(lab.output)
    lab.outcome.difference.lost += len(expected.keys() - found.keys())
    wrong = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    lab.outcome.difference.differing += len(wrong)
    next_night_finds_nothing(lab, lake)


def links(lab: Lab) -> None:
    """Images that are links to files elsewhere; broken links and loops are beside them."""
    lake, elsewhere = own_lake(lab), lab.folder / "elsewhere"
    expected, steps = calm_label(lab, lake)
    elsewhere.mkdir()
    for index, file in enumerate(sorted(lake.iterdir())):
        target = elsewhere / f"{index}{file.suffix}"
        file.rename(target)
        file.symlink_to(target if index % 2 else os.path.relpath(target, lake))
    (lake / "broken.png").symlink_to(elsewhere / "nothing.png")
    (lake / "loop.png").symlink_to(lake / "loop.png")
    (lake / "above").symlink_to(lab.folder, target_is_directory=True)
    step = 1 + round((len(steps) - 1) * float(lab.fault.parameter[:-1]) / 100)
    command = lab.start("label", source=str(lake), at=f"{step} kill")
    assert lab.finish(command) in (0, -signal.SIGKILL), command.said()
    lab.recover("label", source=str(lake))
    found = read_tables(lab.output, latest=True)
    broken = {name for name in found if name.endswith(("broken.png", "loop.png"))}
    lab.compare({**expected, **{name: found[name] for name in broken}}, latest=True)
    assert all(statuses(lab.output)[Path(name).name] != "ok" for name in broken)
    next_night_finds_nothing(lab, lake)


def changed_midway(lab: Lab) -> None:
    """Images are replaced and removed between listing and reading; the next night has the new."""
    lake = own_lake(lab)
    _, steps = calm_label(lab, lake)
    command = lab.start("label", source=str(lake), at=f"{first_step(steps, '/plan.parquet')} stop")
    if not lab.until(command.at_step, command):
        raise NotPossible("it was not planned")
    (lake / "0001.png").write_bytes(encoded_image(1001))
    (lake / "0002.png").unlink()
    command.wake()
    assert lab.finish(command) == 0, command.said()
    found = statuses(lab.output)
    assert found["0001.png"] == "changed" and found["0002.png"] == "unreadable", found
    lab.recover("label", source=str(lake))
    expected, _ = calm_label(lab, lake)
    rest = {name: rows for name, rows in read_tables(lab.output, latest=True).items()
            if name.endswith("0002.png")}  # fmt: skip
    assert len(rest) == 1
    lab.compare(expected | rest, latest=True)
    next_night_finds_nothing(lab, lake)


def weights_replaced(lab: Lab) -> None:
    """Other weights lie at the path when detectors load them: none of their boxes may come out."""
    lake = own_lake(lab)
    expected, steps = calm_label(lab, lake)
    first, lab.world.weights = lab.world.weights, lab.folder / "weights.safetensors"
    lab.world.weights.write_bytes(first.read_bytes())
    command = lab.start("label", source=str(lake), at=f"{first_step(steps, '/plan.parquet')} stop")
    if not lab.until(command.at_step, command):
        raise NotPossible("it was not planned")
    other = create_model("shapes-tiny", "random", training=True)
    save_weights(other, lab.folder / "other.safetensors", {"made": "later"})
    (lab.folder / "other.safetensors").replace(lab.world.weights)
    command.wake()
    code = lab.finish(command)
    assert code == 1, f"exit code {code}: {command.said()}"
    lab.explains_itself(command, "weights", "sha256")
    lab.world.weights.write_bytes(first.read_bytes())
    lab.recover("label", source=str(lake))
    lab.compare(expected, latest=True)
    next_night_finds_nothing(lab, lake)


def precision_changed(lab: Lab) -> None:
    """A run that began in fp32 is taken up by a command that asks for another precision."""
    lake, asked = own_lake(lab), ("--precision", "fp32")
    expected, steps = calm_label(lab, lake, *asked)
    step = 1 + round((len(steps) - 1) * float(lab.fault.parameter[:-1]) / 100)
    command = lab.start("label", source=str(lake), at=f"{step} kill", words=asked)
    if lab.finish(command) != -signal.SIGKILL:
        raise NotPossible(f"no step {step}")
    if not any("after" in one and "/plan.parquet" in one for one in command.steps()):
        raise NotPossible("it was killed before it had begun a run")
    lab.wait_for_lease()
    other = lab.start("label", source=str(lake), words=("--precision", "bf16"))
    code = lab.finish(other)
    if code:  # it may also go on in fp32
        assert code in (1, 2), f"exit code {code}: {other.said()}"
        lab.explains_itself(other, "fp32", "precision")
    lab.wait_for_lease()
    again = lab.start("label", source=str(lake), words=asked)
    assert lab.finish(again) == 0, again.said()
    lab.compare(expected, latest=True)
    next_night_finds_nothing(lab, lake)


def hosts_that_do_not_exist(lab: Lab) -> None:
    """A list of images, of which some lie on hosts that do not exist: each of these is one row."""
    lake = own_lake(lab)
    good = sorted(lake.glob("*.png"))
    bad = ["http://no-such-host.invalid/a.png", "http://nor.this.invalid/b.png"]
    listed = lab.folder / "list.txt"
    names = [str(good[0]), bad[0], *map(str, good[1:]), bad[1]]
    listed.write_text("\n".join(names) + "\n")
    lab.run("label", 0, source=str(listed))
    found = statuses(lab.output)
    expected = {file.name: "ok" for file in good}
    lab.outcome.difference.lost += len({*expected, "a.png", "b.png"} - found.keys())
    lab.outcome.difference.differing += sum(found.get(name) != "ok" for name in expected)
    assert all(found[name] != "ok" for name in ("a.png", "b.png")), found
    next_night_finds_nothing(lab, listed)


KINDS = {
    "harmful images": harmful_images,
    "lake of links": links,
    "images changed midway": changed_midway,
    "weights replaced midway": weights_replaced,
    "precision changed midway": precision_changed,
    "listed hosts that do not exist": hosts_that_do_not_exist,
}
