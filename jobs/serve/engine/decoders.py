"""The stage that decodes, with the calls of many requests at once."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from jobs.serve.engine.parts import DecodingSpec
from jobs.serve.engine.rows import encoded_table
from pipeline.stages.prepare import Preparer


class Decoding:
    """Image files -> PREPARED, in a confined child process."""

    def __init__(self, spec: DecodingSpec):
        self._preparer = Preparer(spec.resize, spec.max_pixels, enlarge=spec.enlarge)
        self._thread = ThreadPoolExecutor(1, "decoding")  # the child decodes one image at a time

    async def __call__(self, images: Sequence[bytes], keys: Sequence[str]) -> pa.Table:
        """Decode and resize images. An image that cannot be decoded is a failed row.

        A key names an image in the crash journal of the detectors: no two images may share one.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._prepare, encoded_table(images, keys)
        )

    def _prepare(self, encoded: pa.Table) -> pa.Table:
        return pa.concat_tables(self._preparer(encoded))
