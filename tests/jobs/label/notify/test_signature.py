"""Receivers verify what is sent by the library of the specification, and by its formula."""

import base64
import hashlib
import hmac
import time

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from jobs.label.notify.signature import VARIABLE, signed_headers, signing_key
from pipeline.storage.errors import InputError

KEY = bytes(range(32))
SECRET = base64.b64encode(KEY).decode()
BODY = '{"type": "label.done", "what": "Größe"}'.encode()


def test_the_library_of_the_specification_verifies_it() -> None:
    headers = signed_headers(KEY, "msg_1", BODY, time.time())
    assert Webhook(f"whsec_{SECRET}").verify(BODY, headers)["type"] == "label.done"
    for body, other in ((BODY + b" ", headers), (BODY, {**headers, "webhook-id": "msg_2"})):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body, other)


def test_the_signature_is_the_formula_of_the_specification() -> None:
    headers = signed_headers(KEY, "msg_1", BODY, 1_700_000_000.9)
    digest = hmac.new(KEY, b"msg_1.1700000000." + BODY, hashlib.sha256).digest()
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_the_key_comes_from_the_environment(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{prefix}{SECRET}\n")
    assert signing_key() == KEY


@pytest.mark.parametrize("wrong", ["", "hunter2", "not base 64 at all, but long", "c2hvcnQ="])
def test_what_is_no_key_is_refused_and_not_shown(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(InputError, match="openssl rand -base64 32") as error:
        signing_key()
    assert not wrong or wrong not in str(error.value)
