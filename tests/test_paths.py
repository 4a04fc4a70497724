"""Passwords in URLs are never shown."""

import pytest

from tuner.paths import mask_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:pw@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("postgresql+psycopg://ann:p@w@host/db", "postgresql+psycopg://ann:***@host/db"),
        ("postgresql://ann:p/w@host/db", "postgresql://ann:***@host/db"),
        ("http://:token@host", "http://:***@host"),
        ("could not reach http://a:b@c/d twice", "could not reach http://a:***@c/d twice"),
        ("postgresql://host/db?user=ann&password=pw", "postgresql://host/db?user=ann&password=***"),
        ("https://host/x?access_token=abc&y=1", "https://host/x?access_token=***&y=1"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("a:b@c", "a:b@c"),
    ],
)
def test_mask_password(text: str, shown: str) -> None:
    assert mask_password(text) == shown
