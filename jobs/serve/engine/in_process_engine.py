"""An engine in this process, without Ray: for tests, and as the measure of the endpoint."""

import asyncio
import uuid
from collections.abc import Callable, Sequence

from jobs.serve.engine.admission import Admission
from jobs.serve.engine.decoders import Decoding
from jobs.serve.engine.detectors import Detecting
from jobs.serve.engine.engine import Labelled
from jobs.serve.engine.rows import answers
from jobs.serve.engine.spec import EngineSpec


class InProcessEngine:
    """Decodes in a confined child and detects in threads of this process. See `Engine`."""

    def __init__(self, spec: EngineSpec, detecting: Detecting | None = None):
        """`detecting` is the detector; None: that of the spec.

        Raises CheckpointError for weights that are missing or do not fit.
        """
        self.model, self.labels = spec.served.model, spec.served.labels
        self._decoding, self._detecting = Decoding(spec.decoding), detecting or Detecting(spec)
        self._admission = Admission(spec.served.max_queue)

    def expect(self) -> Callable[[], None]:
        """Take a place for a request whose images are not known yet. See `Engine`."""
        return self._admission.expect()

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        """Detect in image files: one answer for each. See `Engine`."""
        with self._admission.admit(len(images), sum(pixels)):
            return list(await asyncio.gather(*map(self._detect_one, images)))

    async def _detect_one(self, encoded: bytes) -> Labelled:
        prepared = await self._decoding([encoded], [uuid.uuid4().hex])
        (answer,) = answers(await self._detecting(prepared), self.labels)
        return answer
