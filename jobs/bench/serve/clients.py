"""Clients that ask an endpoint over HTTP, each for the next answer as soon as it has the last."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import aiohttp

REFUSALS = (429, 503)
ANSWER_SECONDS = 120.0  # time limit of one answer


@dataclass
class Load:
    """What the clients of one turn got."""

    seconds: float = 0.0  # from the first request to the last answer
    images: int = 0  # that were answered
    took: list[float] = field(default_factory=list)  # seconds of each answered request
    refused: list[float] = field(default_factory=list)  # seconds of each refusal
    cpu_seconds: float = 0.0  # of the process of the clients
    statuses: Counter[int] = field(default_factory=Counter)  # of all answers

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def bodies_of(model: str, images: Sequence[bytes], per_request: int) -> list[bytes]:
    """As many bodies of `/v1/detections` as there are images, each with `per_request` of them."""
    uris = [f"data:image/jpeg;base64,{base64.b64encode(one).decode()}" for one in images]
    twice = [*uris, *uris * per_request]
    return [
        json.dumps({"model": model, "images": twice[at : at + per_request]}).encode()
        for at in range(len(uris))
    ]


async def run_clients(
    url: str, bodies: Sequence[bytes], per_request: int, clients: int, seconds: float
) -> Load:
    """Let this many clients ask for `seconds`, and wait for the answers under way.

    A client that is refused asks again after the time that the server names.
    """
    load, number = Load(), count()
    began, cpu_before = time.perf_counter(), time.process_time()
    until = began + seconds
    limits = aiohttp.ClientTimeout(ANSWER_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:

        async def ask() -> None:
            while time.perf_counter() < until:
                asked = time.perf_counter()
                body = bodies[next(number) % len(bodies)]
                headers = {"content-type": "application/json"}
                async with session.post(url, data=body, headers=headers) as answer:
                    await answer.read()
                load.seconds = time.perf_counter() - began
                took = load.seconds - (asked - began)
                load.statuses[answer.status] += 1
                if answer.status == 200:
                    load.took.append(took)
                    load.images += per_request
                elif answer.status in REFUSALS:
                    load.refused.append(took)
                    wait = float(answer.headers.get("retry-after", "1"))
                    await asyncio.sleep(max(0.0, min(wait, until - time.perf_counter())))

        await asyncio.gather(*(ask() for _ in range(clients)))
    load.cpu_seconds = time.process_time() - cpu_before
    return load
