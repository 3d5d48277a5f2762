"""Secrets leave URLs; names stay whole."""

import pytest

from pipeline.storage.urls import identity, mask, printable


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


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://key:word@lake/a?b.jpg", "s3://lake/a?b.jpg"),
        ("https://u:p@lake/a.jpg?X-Amz-Signature=x&X-Amz-Date=1", "https://lake/a.jpg"),
        ("https://lake/image?id=5&token=x", "https://lake/image?id=5"),
        ("https://lake/image?id=6", "https://lake/image?id=6"),
        ("file:///a/b@c.jpg", "file:///a/b@c.jpg"),
        ("s3://lake/a//me@x/1.jpg", "s3://lake/a//me@x/1.jpg"),
        ("https://lake/image?key=1.jpg", "https://lake/image?key=1.jpg"),
        ("https://lake/a.jpg?se=2026&sp=r&sig=x", "https://lake/a.jpg"),
    ],
)
def test_identity_keeps_what_tells_pictures_apart(url: str, name: str) -> None:
    assert identity(url) == name
