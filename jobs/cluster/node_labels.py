"""Labels of Ray nodes, and the rules that choose nodes by their labels."""

import re
from collections.abc import Mapping

from pipeline.storage.errors import InputError

Labels = dict[str, str]  # by label key: the required value, or a rule such as "!spot"


def selector(text: str | None) -> Labels:
    """Parse `key=value` labels, separated by commas. Raises InputError if Ray refuses them."""
    from jobs.cluster.ray_internals import problem_of_selector  # Ray is slow to import

    labels: Labels = {}
    for part in re.split(r",(?![^(]*\))", text or ""):
        key, equals, value = part.partition("=")
        if part.strip() and not equals:
            raise InputError(f"{part}: give KEY=VALUE, the label of a node of Ray")
        if part.strip():
            labels[key.strip()] = value.strip()
    problem = problem_of_selector(labels)
    if problem:
        raise InputError(f"{text}: {problem}")
    return labels


def matches(labels: Mapping[str, str], wanted: Labels) -> bool:
    """Whether Ray would choose a node with these `labels`.

    A rule of `wanted` is "a", "!a", "in(a, b)" or "!in(a, b)".
    """
    for key, rule in wanted.items():
        positive = rule.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", positive)
        values = [v.strip() for v in listed[1].split(",")] if listed else [positive]
        if (labels.get(key) in values) == rule.startswith("!"):
            return False
    return True
