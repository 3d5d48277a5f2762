"""Batches over lakes, and batches in a bucket."""

import uuid
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError

from jobs.output.views import connect
from jobs.serve.engine.engine import Engine
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.image_hosts import ImageHosts
from tests.support.batching import (
    batching,
    client_of,
    create,
    create_lake,
    lines_of,
    request,
    wait_for,
)
from tests.support.labelling import put_images
from tests.support.serving import data_uri, scene_file


def test_lakes_lie_where_the_operator_allows_it(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine
) -> None:
    settings = ApiSettings(
        hosts=ImageHosts.of(["images.internal", "s3://lake/in"]),
        batch_outputs=("s3://lake/out",),
    )
    folder = tmp_path_factory.mktemp("batches")
    with batching(str(folder), engine, settings) as address:
        client = client_of(address)

        def refused(status: int, param: str, **metadata: str) -> None:
            with pytest.raises(APIStatusError) as caught:
                create_lake(client, **metadata)
            assert (caught.value.status_code, caught.value.param) == (status, f"metadata.{param}")

        good = "s3://lake/in/photos"
        refused(400, "output", input=good)
        refused(400, "input", output="s3://lake/out/labels")
        for wrong in (
            str(folder),
            "file:///etc",
            "s3://lake",
            "s3://lake/in/../x",
            "s3://lake/inn",
        ):
            refused(403, "input", input=wrong, output="s3://lake/out/labels")
        refused(403, "input", input="https://images.internal/list.txt", output="s3://lake/out/a")
        for wrong in (good, str(folder), "s3://lake/out/../in", "s3://other/out"):
            refused(403, "output", input=good, output=wrong)
        options: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        metadata = {"input": good, "output": "s3://lake/out/labels"}
        with pytest.raises(BadRequestError, match="endpoint"):
            client.batches.create(input_file_id="none", metadata=metadata, **options)


@pytest.mark.slow
def test_a_lake_is_labelled(bucket: str, engine: Engine) -> None:
    put_images(f"{bucket}/in")
    settings = ApiSettings(
        hosts=ImageHosts.of([f"{bucket}/in"]), batch_outputs=(f"{bucket}/out",), score_threshold=0
    )
    with batching(f"{bucket}/batches", engine, settings) as address:
        client = client_of(address)
        batch = create_lake(client, input=f"{bucket}/in", output=f"{bucket}/out/labels")
        batch = wait_for(client, batch)
        assert batch.status == "completed" and batch.output_file_id is None
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (4, 3, 1)
        with connect(f"{bucket}/out/labels") as labels:
            assert labels.execute("SELECT count(*) FROM latest_images").fetchall() == [(4,)]
        again = create_lake(client, input=f"{bucket}/in", output=f"{bucket}/out/labels")
        counts = wait_for(client, again).request_counts
        assert counts is not None and counts.total == 0


@pytest.mark.slow
def test_a_batch_in_a_bucket(bucket: str, engine: Engine) -> None:
    """Its lines name images of an allowed bucket, one of which is not there, and hold others."""
    put_images(f"{bucket}/in")
    there, gone = (f"{bucket}/in/deep/er/{name}.png" for name in ("0", uuid.uuid4().hex))
    settings = ApiSettings(hosts=ImageHosts.of([f"{bucket}/in"]))
    with batching(f"{bucket}/batches", engine, settings) as address:
        client = client_of(address)
        lines = [
            request("mixed", [there, data_uri(scene_file(1)), gone, f"{bucket}/batches/a"]),
            request("again", [there]),
        ]
        batch = wait_for(client, create(client, lines))
        assert batch.status == "completed" and batch.error_file_id is None
        answers = lines_of(client, batch.output_file_id)
        mixed = answers["mixed"]["response"]["body"]["data"]
        codes = [image["error"] and image["error"]["code"] for image in mixed]
        assert codes == [None, None, "unreadable", "address_not_allowed"]
        assert answers["again"]["response"]["body"]["data"][0]["width"] == mixed[0]["width"]
