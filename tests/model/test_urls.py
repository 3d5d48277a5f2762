"""Secrets leave URLs; names stay whole."""

import pytest

from model.urls import mask, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:word@lake/photos", "s3://lake/photos"),
        ("https://lake/a.jpg?X-Amz-Signature=beef&x=1", "https://lake/a.jpg"),
        (
            "no answer from 'https://u:p@lake/a?sig=1', why?",
            "no answer from 'https://lake/a', why?",
        ),
        ("file:///photos/what?/a.jpg", "file:///photos/what?/a.jpg"),
        ("s3://lake/what?/a@b.jpg", "s3://lake/what?/a@b.jpg"),
    ],
)
def test_mask(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_names_cannot_drive_a_terminal() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\nd") == "a\\x1b[31mb\\x07\\x202ec\nd"
