"""Errors of the endpoint, in the form that OpenAI's clients turn into their exception classes."""

from dataclasses import dataclass, field
from typing import Any

# The types that OpenAI's documents name, by HTTP status.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


@dataclass
class ApiError(Exception):
    """A request that is refused: the answer's status, and the reason that the client shows."""

    status: int
    message: str
    code: str | None = None  # a constant for programs, such as "model_not_found"
    param: str | None = None  # the part of the request at fault, such as "images[2]"
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }
