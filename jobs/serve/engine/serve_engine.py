"""The engine of the endpoint: it asks replicas of Ray Serve, which decode and detect."""

import asyncio
import uuid
from collections.abc import Callable, Sequence

import pyarrow as pa
import ray.exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from jobs.serve.engine.admission import Admission
from jobs.serve.engine.engine import Labelled, Overloaded
from jobs.serve.engine.joining import Joiner
from jobs.serve.engine.parts import ServedModel
from jobs.serve.engine.rows import answers, seconds_of_image
from pipeline.schema import DETECTOR_ERROR, TIMED_OUT, WORKER_CRASH


class ServeEngine:
    """Asks the deployments Decoding and Detecting. See `Engine`.

    Pixels go from one to the other, and never through this process.
    """

    def __init__(
        self, served: ServedModel, decoding: DeploymentHandle, detecting: DeploymentHandle
    ):
        self.model, self.labels, self._seconds = served.model, served.labels, served.seconds
        self._decoding, self._detecting = decoding, detecting
        self._admission = Admission(served.max_queue)
        self._joiner = Joiner(self._call, served.calls, served.large)

    def expect(self) -> Callable[[], None]:
        """Take a place for a request whose images are not known yet. See `Engine`."""
        return self._admission.expect()

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        """Detect in image files: one answer for each. See `Engine`."""
        with self._admission.admit(len(images), sum(pixels)):
            counted = list(zip(images, pixels or [0] * len(images), strict=True))
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._joiner.detect(counted)
            except TimeoutError:
                late = Labelled(TIMED_OUT, f"no result within {self._seconds:g} s")
                return [late] * len(images)

    async def _call(self, images: Sequence[bytes]) -> tuple[list[Labelled], float]:
        """The answers of images that go together, and the seconds that one of them took.

        If a replica ends meanwhile, they go once more and one by one, so that an image that ends
        replicas costs no other image.
        """
        keys = [uuid.uuid4().hex for _ in images]
        try:
            detected = await self._ask(images, keys)
        except ray.exceptions.RayError:
            again = map(self._ask_again, images, keys)
            return list(await asyncio.gather(*again)), 0.0
        return answers(detected, self.labels), seconds_of_image(detected)

    async def _ask_again(self, image: bytes, key: str) -> Labelled:
        try:
            (answer,) = answers(await self._ask([image], [key]), self.labels)
        except ray.exceptions.RayTaskError as error:
            return Labelled(DETECTOR_ERROR, str(error.cause))
        except ray.exceptions.RayError:
            return Labelled(WORKER_CRASH, "the process that computed it ended, twice")
        return answer

    async def _ask(self, images: Sequence[bytes], keys: Sequence[str]) -> pa.Table:
        """Raises Overloaded, and RayError if a replica fails or ends."""
        prepared = self._decoding.remote(list(images), keys)
        detected = self._detecting.remote(prepared)
        try:
            async with asyncio.timeout(self._seconds):
                return await detected
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise Overloaded(str(error)) from error
        except (asyncio.CancelledError, TimeoutError):
            prepared.cancel()
            detected.cancel()
            raise
