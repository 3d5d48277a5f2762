"""The rest of a run that its budget ended: archives that are labelled in part.

Only whole archives are published. What is staged of the others becomes the staging of a run of its
own, which continues the ended one: the same command finishes it first, as it does with the run of a
killed command. It is written before the ended run is committed, and counts only from then on, so
that no block is lost or published twice wherever the command is killed.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.label.planning import plan_url
from jobs.output import paths
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import read_document, write_record
from pipeline.plan.remaining import Staged
from pipeline.plan.shards import Shards
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staged_block
from pipeline.storage.files import join

COPIED_AT_ONCE = 8  # blocks; of each one copy is in memory
CONTINUES = "continues"  # the field of run.json that names the run which a budget ended


def id_of_rest(run_id: str) -> str:
    """The id of the run that continues a run. It is always the same, and sorts right behind it."""
    first, _, number = run_id.partition(".")
    return f"{first}.{int(number or 1) + 1}"


def stage_rest(run_id: str, begun: Shards, staged: Staged, writer: OutputWriter) -> str:
    """Write the run that continues the run `run_id` with the archives `begun`; return its id.

    Its plan is written last: without it, the next command deletes the rest.
    """
    rest, output = id_of_rest(run_id), writer.output
    writer.drop_staging(rest)  # of an earlier attempt that did not commit
    names = pa.array(begun.names(), pa.string())
    held = np.unique(staged.file[np.isin(staged.shard, staged.positions_of(names))])
    source, target = (join(output, paths.blocks(one)) for one in (run_id, rest))

    def copy(name: str) -> None:
        rows = read_staged_block(source, name)
        stage(rows.filter(pc.is_in(rows["shard"], names)), target)

    with ThreadPoolExecutor(COPIED_AT_ONCE) as pool:
        list(pool.map(copy, staged.files.take(pa.array(held)).to_pylist()))
    record = read_document(output, run_id, "run.json")
    committed = len(writer.catalog.state.runs)
    write_record(output, rest, _record_of_rest(record, rest, run_id, committed))
    begun.write_to(plan_url(output, rest))
    return rest


def _record_of_rest(
    record: Mapping[str, Any], rest: str, run_id: str, committed: int
) -> dict[str, Any]:
    """run.json of the run that continues another; `committed` runs were committed before."""
    return {
        **record,
        "run_id": rest,
        CONTINUES: run_id,
        "started_at": time.time(),
        "gone": 0,  # the ended run has recorded them
        "left_out": {},
        "estimate": None,
        "committed_before": committed,
    }
