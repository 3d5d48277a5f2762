"""Signatures of messages, by which a receiver knows that they are ours: Standard Webhooks.

The signature is an HMAC-SHA256 over the id of the message, the time of sending, and the body, in
the form of https://www.standardwebhooks.com: its libraries verify it.
"""

import base64
import binascii
import hashlib
import hmac
import os

from pipeline.storage.errors import InputError

VARIABLE = "DETR_BATCH_NOTIFY_SECRET"
PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a key, as the specification has them


def signing_key() -> bytes:
    """The key in the environment variable. Raises InputError if it is missing or no key."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        raise InputError(
            f"--notify signs what it sends, and {VARIABLE} is not set: set it to 32 random bytes "
            "in base64 (`openssl rand -base64 32`), which the receiver has too"
        )
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not SHORTEST <= len(key) <= LONGEST:
        raise InputError(
            f"{VARIABLE} is no key: give {SHORTEST} to {LONGEST} bytes in base64, with or without "
            f"{PREFIX} before them (`openssl rand -base64 32`)"
        )
    return key


def signed_headers(key: bytes, message_id: str, body: bytes, now: float) -> dict[str, str]:
    """The headers of one attempt to send `body`. `now` is the Unix time.

    All attempts have the same `message_id`, by which a receiver drops repetitions.
    """
    sent_at = str(int(now))
    signed = b".".join([message_id.encode(), sent_at.encode(), body])
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": sent_at,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
