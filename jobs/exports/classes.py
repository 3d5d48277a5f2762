"""The classes of the model that made an OUTPUT, by label id, whatever was detected."""

from collections.abc import Callable, Sequence

import duckdb

from jobs.output.manifest import Manifest


def model_classes(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[Manifest]
) -> tuple[dict[int, str], list[str]]:
    """Return the named classes in order of label ids, and lines about where they come from.

    Label ids without a name (label 0 and the holes of COCO's ids) are none of the classes. A run
    whose manifest lacks the class list, as those of early versions do, gets that of its model: from
    another run with the same fingerprint, else from the named models, else from its detections.
    """
    found: dict[int, str] = {}
    fingerprints = set()
    for run in runs:
        named = {number: name for number, name in enumerate(run["labels"]) if name}
        found.update(named)
        if named:
            fingerprints.add(run["model_fingerprint"])
    unlisted = [run for run in runs if run["model_fingerprint"] not in fingerprints]
    lines = []
    for model in dict.fromkeys(run["model"] for run in unlisted):
        run_ids = [run["run_id"] for run in unlisted if run["model"] == model]
        detected = _detected_classes(connection, run_ids)
        classes = _classes_of_named_model(model)
        if classes and detected.items() <= classes.items():
            lines.append(f"runs of {model} record no class list, so that of the model is taken")
        elif detected:
            classes = detected
            lines.append(
                f"runs of {model} record no class list, so that of their detections is taken: "
                "class numbers may differ after more runs"
            )
        found.update(classes)
    return dict(sorted(found.items())), lines


def rewrite_names(classes: dict[int, str], rewrite: Callable[[str], str]) -> dict[int, str]:
    """Return the names by label id as `rewrite` makes them, and keep different ones different.

    A name that becomes that of another class gets its label id.
    """
    originals = {name: name for name in classes.values() if rewrite(name) == name}
    found = {}
    for label_id, name in classes.items():
        made = rewrite(name)
        while originals.setdefault(made, name) != name:
            made = f"{made}_{label_id}"
        found[label_id] = made
    return found


def _classes_of_named_model(name: str) -> dict[int, str]:
    """The named classes of a model of this package; none if it has no model of this name."""
    from model.named import MODELS  # it imports torch, and few exports need it

    labels = MODELS[name].config().labels if name in MODELS else ()
    return {number: label for number, label in enumerate(labels) if label}


def _detected_classes(
    connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]
) -> dict[int, str]:
    rows = connection.execute(
        "SELECT DISTINCT label_id, label FROM detections WHERE list_contains(?, run) "
        "AND label_id IS NOT NULL AND label <> ''",
        [list(run_ids)],
    )
    return dict(rows.fetchall())
