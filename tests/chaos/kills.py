"""Commands that are killed, ended or interrupted: at each of their steps, at random, and again."""

import random
import re
import signal
import time
from collections.abc import Callable

from tests.chaos.harness import Lab, NotPossible
from tests.chaos.oom import small_group

SIGNALS = {"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}


def order_after(lab: Lab, name: str, committed: int) -> list[str]:
    """The commands that count: one that had committed before it ended has run twice now."""
    return [name] * (2 if committed else 1)


def take_up(lab: Lab, name: str) -> None:
    """Run a command again that has ended somewhere, and compare."""
    order = order_after(lab, name, lab.commits())
    lab.recover(name, lab.undisturbed(*order).codes[-1])
    lab.settle(*order)


def killed_at_step(lab: Lab) -> None:
    """SIGKILL of the driver, and of the process that takes the step."""
    name, step = lab.fault.command, step_of(lab, lab.fault.parameter)
    lab.place_template()
    with lab.readers([name, name]):
        command = lab.start(name, at=f"{step} kill")
        code = lab.finish(command)
        if not command.at_step():
            raise NotPossible(f"{command} has no step {step}: exit code {code}")
        assert code == -signal.SIGKILL, f"{command}: exit code {code}: {command.said()}"
        take_up(lab, name)


def step_of(lab: Lab, where: str) -> int:
    """A step by its number, as a share of all ("50%"), or as the first that names a file."""
    steps = lab.undisturbed(lab.fault.command).steps
    if where.isdigit():
        return int(where)
    if where.endswith("%"):
        return 1 + round((len(steps) - 1) * float(where[:-1]) / 100)
    found = [number for number, step in enumerate(steps, 1) if re.search(where, step)]
    assert found, f"no step of {lab.fault.command} is like {where}: {steps}"
    return found[0]


def killed_at_random(lab: Lab) -> None:
    """SIGKILL of the driver at a moment of no meaning."""
    name = lab.fault.command
    lab.place_template()
    with lab.readers([name, name]):
        command = lab.start(name)
        most = 25.0 if lab.fault.ray else 2.5
        time.sleep(random.Random(lab.fault.parameter).uniform(0.05, most))
        if command.poll() is not None:
            raise NotPossible("it had ended before")
        command.signal(signal.SIGKILL)
        lab.finish(command)
        take_up(lab, name)


def killed_again_and_again(lab: Lab) -> None:
    """SIGKILL of a command, and of each that takes it up, one step later each time."""
    name, count = lab.fault.command, 4
    first = step_of(lab, lab.fault.parameter)
    lab.place_template()
    order = [name]
    with lab.readers([name] * (count + 2)):
        for number in range(count):
            before = lab.commits()
            lab.wait_for_lease()
            command = lab.start(name, at=f"{first + number} kill")
            code = lab.finish(command)
            if lab.commits() > before:
                order.append(name)
            if code != -signal.SIGKILL:  # it had fewer steps than that
                assert code == lab.undisturbed(*order).codes[-1], command.said()
        lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)


def ended_politely(deed: str) -> Callable[[Lab], None]:
    """SIGTERM, as from a scheduler, or SIGINT, as from Ctrl-C, at a step."""

    def fault(lab: Lab) -> None:
        name, step = lab.fault.command, step_of(lab, lab.fault.parameter)
        lab.place_template()
        with lab.readers([name, name]):
            command = lab.start(name, at=f"{step} {deed}")
            code = lab.finish(command)
            if not command.at_step():
                raise NotPossible(f"{command} has no step {step}: exit code {code}")
            assert "Traceback" not in command.said(), command.said()
            # Without Ray, SIGTERM ends a process at once. A last step may be too late to be ended.
            assert code in (0, 1, -SIGNALS[deed]), f"{command}: {code}: {command.said()}"
            if code == 1:
                lab.explains_itself(command, "interrupted", "ended", "same command")
            take_up(lab, name)

    return fault


def out_of_memory(lab: Lab) -> None:
    """The kernel kills the driver, as it has no memory left."""
    name, step = lab.fault.command, step_of(lab, lab.fault.parameter)
    lab.place_template()
    with lab.readers([name, name]), small_group(lab.folder.name) as group:
        command = lab.start(name, at=f"{step} stop")
        if not lab.until(command.at_step, command):
            raise NotPossible(f"{command} has no step {step}")
        group.add(command.at_step()[0])
        command.wake()
        code = lab.finish(command)
        if code == 0:
            raise NotPossible("it needed no more memory")
        assert code == -signal.SIGKILL, f"{command}: exit code {code}: {command.said()}"
        take_up(lab, name)


KINDS = {
    "killed at a step": killed_at_step,
    "killed at random": killed_at_random,
    "killed again and again": killed_again_and_again,
    "SIGTERM": ended_politely("terminate"),
    "Ctrl-C": ended_politely("interrupt"),
    "out of memory": out_of_memory,
}
