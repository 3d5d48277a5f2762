"""The metrics of several replicas as one."""

import asyncio
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from jobs.serve.http.metrics import Metrics
from jobs.serve.http.totals import ENDED_SECONDS, GONE_SECONDS, Samples, Sums
from tests.support.coroutines import run_coroutine

SCOPE = {"method": "POST", "path": "/v1/detections"}


class Shared:
    """The sums of several replicas in this process, at a time of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sums = Sums(lambda: self.now)

    async def report(self, replica: str, samples: Samples) -> Samples:
        return self._sums.report(replica, samples)


def values(metrics: Metrics) -> dict[str, float]:
    """What a scrape of a replica says, as Prometheus' own parser reads it."""
    text = run_coroutine(metrics.as_text()).decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    return {f"{one.name} {one.labels.get('le', '')}".strip(): one.value for one in samples}


def test_each_replica_tells_the_counts_of_all() -> None:
    shared = Shared()
    first, second = Metrics(shared), Metrics(shared)
    for replica, images in ((first, 3), (second, 4)):
        with replica.request(SCOPE, SimpleNamespace(status=200)):
            replica.images.labels("ok").inc(images)
    values(first)
    for scraped in (second, first, first):
        found = values(scraped)
        assert found["detr_batch_serve_images_total"] == 7
        assert found["detr_batch_serve_requests_total"] == 2
        assert found["detr_batch_serve_request_seconds_bucket +Inf"] == 2
        assert found["detr_batch_serve_request_seconds_count"] == 2
        assert not any(name.endswith("_created") for name in found)


def test_what_an_ended_replica_counted_stays_and_what_it_had_in_flight_goes() -> None:
    shared = Shared()
    first, second = Metrics(shared), Metrics(shared)
    with first.request(SCOPE, SimpleNamespace(status=200)):
        first.images.labels("ok").inc(3)
        values(first)
        assert values(second)["detr_batch_serve_requests_in_flight"] == 1
    shared.now += GONE_SECONDS + 1
    found = values(second)
    assert found["detr_batch_serve_requests_in_flight"] == 0
    assert found["detr_batch_serve_images_total"] == 3


def test_replicas_that_ended_long_ago_take_no_memory_and_their_counts_stay() -> None:
    now = 0.0
    sums = Sums(lambda: now)
    counter, gauge = (
        ("images", "images_total", (("status", "ok"),)),
        ("f_in_flight", "f_in_flight", ()),
    )
    highest = 0.0
    for replica in range(200):
        now += ENDED_SECONDS / 4
        for count in (1.0, 3.0):
            found = sums.report(f"replica {replica}", {counter: count, gauge: 1.0})
            assert found[counter] == 3 * replica + count > highest
            highest = found[counter]
            assert found[gauge] == 1
    assert len(sums._newest) <= 5


def test_replicas_report_without_being_scraped() -> None:
    shared = Shared()
    first, second = Metrics(shared), Metrics(shared)
    first.images.labels("ok").inc()

    async def run() -> None:
        reporting = asyncio.create_task(first.keep_reporting(0.01))
        await asyncio.sleep(0.2)
        reporting.cancel()

    run_coroutine(run())
    assert values(second)["detr_batch_serve_images_total"] == 1
