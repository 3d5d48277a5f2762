"""Stores that fail: some requests, all of them, those for one object, and those that list."""

import signal
from collections.abc import Callable

from tests.chaos.faulty_store import KINDS as WAYS
from tests.chaos.faulty_store import FaultyStore
from tests.chaos.harness import Lab, NotPossible
from tests.chaos.kills import take_up
from tests.chaos.pauses import change_of

NOWHERE = "http://no-such-host.invalid:9"
RATES = {"stall": 0.03}  # shares of requests; each one costs half a minute
STALLED_COMMAND_SECONDS = 420.0  # for a command that meets many of them
PATIENT_SECONDS, LONG_LEASE_SECONDS = "60", "60"  # a stalled renewal takes half of the lease


def now_and_then(way: str) -> Callable[[Lab], None]:
    """Some requests fail in one way. A command ends as ever, or says that it did not."""

    def fault(lab: Lab) -> None:
        name = lab.fault.command
        lab.place_template()
        with lab.readers([name, name]), lab.proxy() as store:
            store.random.seed(lab.fault.parameter)
            store.rate, store.kinds = RATES.get(way, 0.1), (way,)
            command = lab.start(
                name,
                DETR_BATCH_LEASE_SECONDS=LONG_LEASE_SECONDS,
                DETR_BATCH_STORE_PATIENCE=PATIENT_SECONDS,
            )
            code = lab.finish(command, STALLED_COMMAND_SECONDS if way == "stall" else 0.0)
            store.rate = 0.0
            if not store.injected:
                raise NotPossible("chance disturbed no request")
            if code:
                lab.explains_itself(command)
            order = [name] * (2 if lab.commits() else 1)
            lab.recover(name, lab.undisturbed(*order).codes[-1])
            lab.settle(*order)

    return fault


def lost_answer(lab: Lab) -> None:
    """A change of OUTPUT takes effect, and nobody hears of it."""
    name = lab.fault.command
    lab.place_template()
    with lab.readers([name, name]), lab.proxy() as store:
        store.deed, store.deed_at = "lose", change_of(lab, lab.fault.parameter)
        command = lab.start(name)
        code = lab.finish(command)
        if not store.done.is_set():
            raise NotPossible(f"{command} makes fewer than {store.deed_at} changes")
        assert code == 0, f"{command}: exit code {code}: {command.said()}"
        lab.settle(name)


def from_a_change_on(fail: Callable[[FaultyStore], None]) -> Callable[[Lab], None]:
    """The store fails from the middle of a command on; the command ends, and says so."""

    def fault(lab: Lab) -> None:
        name = lab.fault.command
        lab.place_template()
        with lab.readers([name, name]), lab.proxy() as store:
            store.deed, store.deed_at = "hold", change_of(lab, lab.fault.parameter)
            command = lab.start(name)
            if not lab.until(store.held.is_set, command):
                raise NotPossible(f"{command} makes fewer than {store.deed_at} changes")
            fail(store)
            store.release.set()
            code = lab.finish(command)
            store.gone = store.forbidding = False
            # What fails while it tidies up after its commit need not concern it.
            assert code == 1 or (code == 0 and lab.commits()), f"{code}: {command.said()}"
            if code:
                lab.explains_itself(command)
            take_up(lab, name)

    return fault


def vanish(store: FaultyStore) -> None:
    store.gone = True


def forbid(store: FaultyStore) -> None:
    store.forbidding = True


def one_object_fails(lab: Lab) -> None:
    """Requests for one object are answered by 500, until somebody mends it."""
    name = lab.fault.command
    lab.place_template()
    with lab.readers([name, name]), lab.proxy() as store:
        store.broken = lab.fault.parameter
        command = lab.start(name)
        code = lab.finish(command)
        if not store.done.is_set():
            raise NotPossible(f"{command} asks for nothing like {store.broken}")
        committed = lab.commits()
        # 500 says nothing about the arguments, so this is a failure that a scheduler tries again.
        assert code == 1 or (code == 0 and committed), f"exit code {code}: {command.said()}"
        if code:
            lab.explains_itself(command)
        store.broken = ""
        take_up(lab, name)


def one_image_fails(lab: Lab) -> None:
    """One object of INPUT is answered by 500: its row fails, and the next run labels it."""
    name = lab.fault.command
    lab.place_template()
    with lab.proxy() as store:
        store.broken = lab.fault.parameter
        command = lab.start(name)
        code = lab.finish(command)
        if not store.done.is_set():
            raise NotPossible(f"{command} asks for nothing like {store.broken}")
        assert code == 0 and lab.commits(), f"exit code {code}: {command.said()}"
        store.broken = ""
        lab.recover(name, 0)
        lab.compare(lab.undisturbed(name).tables, latest=True)
        lab.run("verify")


def stale_listings(lab: Lab) -> None:
    """Listings lag behind, from the start of a command to its end."""
    name = lab.fault.command
    lab.place_template()
    with lab.readers([name, name]), lab.proxy() as store:
        lab.finish(lab.start("verify"))  # so that the store has listed what is there
        store.stale.stuck = True
        command = lab.start(name)
        code = lab.finish(command)
        assert code in (0, 1), f"{command}: exit code {code}: {command.said()}"
        if code:
            lab.explains_itself(command)
        store.stale.stuck = False
        take_up(lab, name)


def stale_after_kill(lab: Lab) -> None:
    """Listings show the command that comes after a kill nothing of what the killed one wrote."""
    name = lab.fault.command
    lab.place_template()
    with lab.readers([name, name]), lab.proxy() as store:
        lab.finish(lab.start("verify"))
        store.stale.stuck = True
        command = lab.start(name)
        store.deed, store.deed_at = "hold", change_of(lab, lab.fault.parameter)
        if not lab.until(store.held.is_set, command):
            raise NotPossible(f"{command} makes fewer than {store.deed_at} changes")
        command.signal(signal.SIGKILL)
        lab.finish(command)
        store.release.set()
        lab.wait_for_lease()  # meanwhile the request of the killed command arrives
        order = [name] * (2 if lab.commits() else 1)
        again = lab.start(name)
        code = lab.finish(again)
        expected = lab.undisturbed(*order).codes[-1]
        assert code in (1, expected), f"{again}: exit code {code}: {again.said()}"
        store.stale.stuck = False
        if code == 1:
            lab.explains_itself(again)
            order = [name] * (2 if lab.commits() else 1)
            lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)


def no_such_host(lab: Lab) -> None:
    """The endpoint of the store is of a host that does not exist."""
    name = lab.fault.command
    lab.place_template()
    command = lab.start(name, AWS_ENDPOINT_URL=NOWHERE)
    code = lab.finish(command)
    assert code in (1, 2), f"{command}: exit code {code}: {command.said()}"
    lab.explains_itself(command)
    take_up(lab, name)


KINDS = {
    **{f"store: {way} now and then": now_and_then(way) for way in WAYS},
    "store: lost answer of one change": lost_answer,
    "store gone": from_a_change_on(vanish),
    "writes forbidden": from_a_change_on(forbid),
    "500 for one object": one_object_fails,
    "500 for one image": one_image_fails,
    "stale listings": stale_listings,
    "stale listings after a kill": stale_after_kill,
    "store of a host that does not exist": no_such_host,
}
