"""Delivers messages from a thread, so that a slow receiver never delays a run."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from jobs.accounting.plurals import counted
from jobs.label.log.lines import print_line
from jobs.label.notify.post import NotDelivered


class Outbox:
    """Delivers messages one after the other, in their order.

    `deliver` raises NotDelivered. Its first reason is printed by `close`, in one line. `name` is
    the receiver as that line names it.
    """

    def __init__(self, name: str, deliver: Callable[[dict[str, Any]], None]):
        self._name, self._deliver = name, deliver
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._given = self._delivered = 0
        self._reason: str | None = None
        # A daemon: a receiver that never answers does not keep the process.
        self._thread = threading.Thread(target=self._work, daemon=True, name="outbox")

    def put(self, message: dict[str, Any]) -> None:
        """Deliver the message soon."""
        if not self._given:
            self._thread.start()
        self._given += 1
        self._messages.put(message)

    def close(self, until: float) -> None:
        """Wait for the deliveries, until `time.monotonic` is `until` at the latest.

        Prints one line if a message was not delivered.
        """
        if not self._given:
            return
        self._messages.put(None)
        try:
            self._thread.join(max(0.0, until - time.monotonic()))
            late = "it did not answer in time"
        except (KeyboardInterrupt, SystemExit):  # the command has ended: its exit code stays
            late = "interrupted"
        if missing := self._given - self._delivered:
            print_line(
                f"{self._name}: {counted(missing, 'message')} not delivered: "
                f"{self._reason or late}. The labels are not affected"
            )

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._deliver(message)
                self._delivered += 1
            except NotDelivered as error:
                self._reason = self._reason or str(error)
            except Exception as error:  # stores raise many types; their texts may show an address
                self._reason = self._reason or type(error).__name__
