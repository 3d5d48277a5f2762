"""Labels of Ray's nodes, and the rules by which they are chosen."""

import re
from collections.abc import Mapping

from pipeline.storage.errors import InputError

Labels = dict[str, str]  # by key: the value that a label must have, or a rule such as "!spot"


def selector(text: str | None) -> Labels:
    """Labels from `key=value`, several with commas between. InputError where Ray knows no such."""
    from jobs.cluster.ray_internals import problem_of_selector  # as Ray is slow to import

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
    """Whether Ray would choose a node of these `labels`: "a", "!a", "in(a, b)", "!in(a, b)"."""
    for key, rule in wanted.items():
        positive = rule.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", positive)
        values = [v.strip() for v in listed[1].split(",")] if listed else [positive]
        if (labels.get(key) in values) == rule.startswith("!"):
            return False
    return True
