"""The routes of files and batches of a server that was started without them."""

from fastapi import APIRouter

from jobs.serve.protocol.errors import ApiError

router = APIRouter(include_in_schema=False)
METHODS = ["GET", "POST", "DELETE"]


@router.api_route("/v1/files{rest:path}", methods=METHODS)
@router.api_route("/v1/batches{rest:path}", methods=METHODS)
async def refuse(rest: str) -> None:
    """Say what is missing."""
    raise ApiError(
        404,
        "This server offers no files and batches: it was started without --batches.",
        "not_offered",
    )
