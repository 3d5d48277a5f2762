"""Writers that stand still between two steps, or are cut off, while another command takes over."""

import signal

from tests.chaos.commands import Command
from tests.chaos.harness import DISK, Lab, NotPossible
from tests.chaos.kills import step_of

LOST = ("took OUTPUT over", "taken over", "lease")  # what a writer says that lost its right


def heir_of(lab: Lab) -> tuple[str, str]:
    """The parameter of a fault: where the victim stands still, and the command that takes over."""
    where, _, heir = lab.fault.parameter.rpartition(" ")
    return where, heir


def take_over(lab: Lab, victim: Command, heir: str) -> int:
    """Run another command while one stands still; return how often the victim had committed."""
    committed = lab.commits()
    lab.wait_for_lease()
    began = lab.start(heir, elsewhere=True)
    code = lab.finish(began)
    if code == 2:  # the victim left an unfinished run, or what `delete` deletes is gone
        lab.explains_itself(began, "unfinished run", "has no finished run")
    elif code:
        raise AssertionError(f"{began}: exit code {code}: {began.said()}")
    return committed


def bring_to_end(lab: Lab, victim: Command, heir: str, committed: int) -> None:
    """Let the victim end, run it again if it lost, and compare."""
    name, order = lab.fault.command, list[str]()
    code = lab.finish(victim)
    heirs = [heir] * (lab.commands[-1].poll() == 0)
    if committed:
        # It may find out that it lost the lock while it tidies up; what it committed counts.
        assert code in (0, 1), f"{victim}: exit code {code}: {victim.said()}"
        order = [name, *heirs]
    elif code in (0, 2):  # it had not begun when the other did
        order = [*heirs, name]
        assert code == lab.undisturbed(*order).codes[-1], victim.said()
    else:
        assert code == 1, f"{victim}: exit code {code}: {victim.said()}"
        order = [*heirs, name]
        lab.recover(name, lab.undisturbed(*order).codes[-1])
    if code == 1:
        lab.explains_itself(victim, *LOST)
    lab.settle(*order)


def stopped(lab: Lab) -> None:
    """SIGSTOP at a step, for longer than the lease; SIGCONT when the other command is done."""
    name = lab.fault.command
    where, heir = heir_of(lab)
    lab.place_template()
    with lab.readers([name, heir], [heir, name]):
        victim = lab.start(name, at=f"{step_of(lab, where)} stop")
        if not lab.until(victim.at_step, victim):
            raise NotPossible(f"{victim} has no step {where}")
        committed = take_over(lab, victim, heir)
        victim.wake()
        bring_to_end(lab, victim, heir, committed)


def cut_off(lab: Lab) -> None:
    """A partition: a request is held on its way, and arrives when the other command is done."""
    name = lab.fault.command
    where, heir = heir_of(lab)
    lab.place_template()
    with lab.readers([name, heir], [heir, name]), lab.proxy() as store:
        store.deed, store.deed_at = "hold", change_of(lab, where)
        victim = lab.start(name)
        if not lab.until(store.held.is_set, victim):
            raise NotPossible(f"{victim} makes fewer than {store.deed_at} changes")
        committed = take_over(lab, victim, heir)
        store.release.set()
        bring_to_end(lab, victim, heir, committed)


def change_of(lab: Lab, where: str) -> int:
    """The number of a change of the store, from a step of the command on disk."""
    steps = lab.undisturbed(lab.fault.command).steps[: step_of(lab, where)]
    return sum(step.startswith("before") and not step.endswith("lock.json") for step in steps) or 1


def arrives_late(lab: Lab) -> None:
    """A request is cut on its way, repeated, and arrives once more when all is over."""
    name = lab.fault.command
    where, heir = heir_of(lab)
    lab.place_template()
    with lab.readers([name, heir, name], [heir, name]), lab.proxy() as store:
        store.deed, store.deed_at = "delay", change_of(lab, where)
        victim = lab.start(name)
        code = lab.finish(victim)
        if not store.done.is_set():
            raise NotPossible(f"{victim} makes fewer than {store.deed_at} changes")
        committed = lab.commits()
        assert code in (0, 1), f"{victim}: exit code {code}: {victim.said()}"
        if code == 1:
            lab.explains_itself(victim)
        lab.run(heir, 0, 2, elsewhere=True)
        store.release.set()
        assert store.arrived.wait(30)
        order = [name] * (committed > 0) + [heir]
        if lab.undisturbed(*order).codes[-1] != lab.commands[-1].poll():  # it was refused
            order.pop()
        order.append(name)
        lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)


def killed_then_another(lab: Lab) -> None:
    """A command is killed, and another kind of command comes before the same one again."""
    name = lab.fault.command
    where, heir = heir_of(lab)
    lab.place_template()
    with lab.readers([name, heir, name], [heir, name]):
        victim = lab.start(name, at=f"{step_of(lab, where)} kill")
        if lab.finish(victim) != -signal.SIGKILL:
            raise NotPossible(f"{victim} has no step {where}")
        order = [name] * (lab.commits() > 0)
        code = take_over_code(lab, heir)
        order += [heir] * (code == 0)
        order.append(name)
        lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)


def take_over_code(lab: Lab, heir: str) -> int:
    """Run another command after one that was killed; its exit code, 0 or 2 with a reason."""
    command = lab.run(heir, 0, 2, elsewhere=True)
    code = lab.finish(command)
    if code == 2:
        lab.explains_itself(command, "unfinished run", "has no finished run")
    return code


def two_at_once(lab: Lab) -> None:
    """A second command while one runs is refused, and names it."""
    name = lab.fault.command
    where, heir = heir_of(lab)
    lab.place_template()
    with lab.readers([name, name]):
        at = f"{step_of(lab, where)} stop"
        # The first one must not lose its lease before the second has seen it.
        first = lab.start(name, at=at, DETR_BATCH_LEASE_SECONDS="30")
        if not lab.until(first.at_step, first):
            raise NotPossible(f"{first} has no step {where}")
        second = lab.start(heir, elsewhere=lab.fault.where == DISK)
        refused = lab.until(lambda: second.poll() is not None, first)
        first.wake()
        assert refused
        if lab.finish(second) == 2 and "being written" in second.said():
            lab.explains_itself(second, f":{first.pid} ")
        else:
            raise NotPossible(f"the first had the lock no more: {second.said()}")
        assert lab.finish(first) in (0, 1), first.said()
        order = [name] * (2 if lab.commits() else 1)
        lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)


KINDS = {
    "paused, taken over": stopped,
    "cut off, taken over": cut_off,
    "request arrives late": arrives_late,
    "killed, then another command": killed_then_another,
    "two commands at once": two_at_once,
}
