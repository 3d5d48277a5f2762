"""A session of aiobotocore's for s3fs, quick at listings.

botocore (1.4x) looks up every member of every object that a listing names, and parses its date: 70
us an object, a minute a million. Only what a plan needs is read here.
"""

from typing import Any

from aiobotocore.parsers import AioResponseParserFactory, AioRestXMLParser
from aiobotocore.session import AioSession


def s3_session(options: dict[str, Any]) -> AioSession:
    """What s3fs would make of `options`, with that parser."""
    session = AioSession(**options)
    session.register_component("response_parser_factory", _Factory())
    return session


class _Factory(AioResponseParserFactory):
    def create_parser(self, protocol_name: str) -> Any:
        if protocol_name == "rest-xml":
            return _ListingParser(**self._defaults)
        return super().create_parser(protocol_name)


class _ListingParser(AioRestXMLParser):
    """Gives of a listed `Object` its Key, ETag and Size alone."""

    def _handle_structure(self, shape: Any, node: Any) -> Any:
        if shape.name != "Object":
            return super()._handle_structure(shape, node)
        texts = {child.tag.rpartition("}")[2]: child.text or "" for child in node}
        return {"Key": texts["Key"], "ETag": texts.get("ETag", ""), "Size": int(texts["Size"])}
