"""The options of what a run may cost, in money and time."""

import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobs.accounting.budget import Budget
from jobs.accounting.node_hours import Rates
from pipeline.storage.errors import InputError

EXIT_ENDED = 4  # ended by a budget of money or time, published, to be gone on with
PROBED_IMAGES = 200  # of the first --dry-run
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What a run may cost, and how the estimate of its cost is made."""

    max_usd: float | None = field(
        default=None,
        metadata={
            "metavar": "USD",
            "help": "end after so much money, by the price given: publish what is there, with exit "
            "code 4; the next run goes on",
        },
    )
    max_hours: float | None = field(
        default=None,
        metadata={"metavar": "HOURS", "help": "end after so much time, as --max-usd does"},
    )
    until: str | None = field(
        default=None,
        metadata={
            "metavar": "TIME",
            "help": "end at this time, as --max-usd does: 06:00, which comes next on the clock of "
            "this machine, or 2026-12-01T06:00+01:00",
        },
    )
    budget_exit_code: int = field(
        default=EXIT_ENDED,
        metadata={
            "choices": (0, EXIT_ENDED),
            "help": "the exit code of a run that such a limit ended; 0 for schedulers that take "
            "every other one for a failure and try again",
        },
    )
    probe: int | None = field(
        default=None,
        metadata={
            "metavar": "N",
            "help": "images that --dry-run labels to measure what the run will take; 0: none "
            f"(default: {PROBED_IMAGES} where no earlier run is known, else none)",
        },
    )

    def check_budget(self, has_price: bool, relabel: bool, dry_run: bool) -> None:
        """Raise InputError for limits that are wrong or cannot be kept."""
        given = self._names()
        for name in ("max_usd", "max_hours"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{given[name]} is spent before the first block: give more than 0")
        if self.max_usd is not None and not has_price:
            raise InputError(
                f"{given['max_usd']} wants a price above 0: give --instance-type or --usd-per-hour"
            )
        if self.until is not None:
            time_of(self.until, time.time())
        if given and relabel:
            raise InputError(
                f"--relabel with {next(iter(given.values()))} would drop the labels of the images "
                "that are not reached: leave one of them out"
            )
        if self.probe is not None and (self.probe < 0 or not dry_run):
            wrong = "give 0 or more" if self.probe < 0 else "it is for --dry-run"
            raise InputError(f"--probe {self.probe}: {wrong}")

    def budget(self, began: float, rates: Rates) -> Budget:
        """The budget of a command that began at this Unix time, by `steady_time`."""
        until = None if self.until is None else time_of(self.until, time.time())
        return Budget(began, rates, self.max_usd, self.max_hours, until, self._names())

    def until_with_zone(self) -> str | None:
        """`--until` as other machines understand it. Raises InputError for what is no time."""
        return None if self.until is None else time_as_text(time_of(self.until, time.time()))

    def _names(self) -> dict[str, str]:
        """The limits that are given, as the user gave them."""
        texts = {
            "max_usd": self.max_usd is not None and f"--max-usd {self.max_usd:g}",
            "max_hours": self.max_hours is not None and f"--max-hours {self.max_hours:g}",
            "until": self.until is not None and f"--until {self.until}",
        }
        return {name: text for name, text in texts.items() if text}


def limits_as_lines(budget: Budget) -> list[str]:
    """What the limits mean, for people. `06:00` is that of the budget, however late it is now."""
    if budget.until is None:
        return []
    return [f"{budget.names['until']}: the run ends at {time_as_text(budget.until)}"]


def time_of(text: str, now: float) -> float:
    """The Unix time of `--until`. Raises InputError for what is no time, or is past.

    `HH:MM` is its next occurrence behind `now`, in the zone of this machine. An ISO 8601 time
    without a zone is in that zone too.
    """
    if found := _CLOCK.fullmatch(text):
        hour, minute, second = (int(part or 0) for part in found.groups())
        if hour < 24 and minute < 60 and second < 60:
            return _next_on_clock(hour, minute, second, now)
    try:
        wanted = datetime.fromisoformat(text)
        if len(text) <= len("2026-12-01"):
            raise ValueError("a day alone is no time")
        found_time = wanted.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"--until {text} is no time: give one like 06:00 or 2026-12-01T06:00+01:00"
        ) from error
    if found_time <= now:
        raise InputError(f"--until {text} is past: it is {time_as_text(now)} now")
    return found_time


def _next_on_clock(hour: int, minute: int, second: int, now: float) -> float:
    """The first time behind `now` at which the clock of this machine shows this.

    Where a day has no such time, as summer time begins, it is an hour later. Where a day has it
    twice, both count.
    """
    today = datetime.fromtimestamp(now).date()
    times = []
    for day in (today, today + timedelta(days=1)):
        wanted = datetime(day.year, day.month, day.day, hour, minute, second)
        both = [wanted.replace(fold=fold).timestamp() for fold in (0, 1)]
        times += [at for at in both if datetime.fromtimestamp(at) == wanted] or both[:1]
    return min(found for found in times if found > now)


def time_as_text(at: float) -> str:
    """A Unix time in the zone of this machine, as `2026-12-01T06:00:00+01:00`."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
