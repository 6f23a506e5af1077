"""Addresses of storage places: checked, joined, and shown without secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from selectit_dagster.errors import UserError

VARIABLE = "SELECTIT_STORAGE"
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),  # user and password
    (re.compile(r"(?<=[\w/])\?[^\s\"']+"), ""),  # signatures of signed addresses
)


def is_address(text: str) -> bool:
    """Tell whether ``text`` is an address (``scheme://...``) and no path or hub name."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def checked_address(text: str) -> str:
    """Return an address without a slash at its end.

    Raises
    ------
    ValueError
        When it is no address, names no place, or carries a user, a password or a query:
        those end up in logs. The message does not repeat the address.
    """
    if not is_address(text):
        raise ValueError("must be an address such as s3://bucket/folder or file:///folder")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(
            "must not carry a user or a password; credentials come from the environment"
        )
    if "?" in text or "#" in text:
        raise ValueError("must not carry a query; credentials come from the environment")
    if not parts.netloc and not parts.path.strip("/"):
        raise ValueError("must name a bucket or a folder")
    if parts.scheme in ("file", "local") and (parts.netloc or not parts.path.startswith("/")):
        raise ValueError("must be absolute: file:///folder, with three slashes")
    return text.rstrip("/")


def storage_address(section_url: str | None) -> str | None:
    """Return where artefacts are published: the experiment's address, else the variable's.

    Raises
    ------
    UserError
        When ``$SELECTIT_STORAGE`` is no usable address.
    """
    if section_url is not None:
        return section_url
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return None
    try:
        return checked_address(given)
    except ValueError as error:
        raise UserError(
            f"${VARIABLE} {error}", hint="for example s3://bucket/folder or file:///mnt/share"
        ) from None


def without_secrets(text: str) -> str:
    """Return a library's message without users, passwords and signatures of addresses in it."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
