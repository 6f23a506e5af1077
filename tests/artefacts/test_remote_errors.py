"""Whether a library's error can be mended by a person is told from its names and codes."""

from __future__ import annotations

import errno

import pytest

from selectit_dagster.artefacts.remote_files import explained
from selectit_dagster.errors import TransientError, UserError


class ClientError(Exception):
    """Like botocore's: the code is in a dictionary."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class HttpError(Exception):
    """Like gcsfs's: the code is an attribute."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class NoCredentialsError(Exception):
    """Known by its name."""


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NoCredentialsError("Unable to locate credentials"), "no usable credentials"),
        (caused(PermissionError("Forbidden"), ClientError("403", 403)), "access is refused"),
        (caused(PermissionError("x"), ClientError("ExpiredToken", 400)), "access is refused"),
        (HttpError(401), "access is refused"),
        (HttpError(403), "access is refused"),
        (caused(FileNotFoundError("x"), ClientError("NoSuchBucket", 404)), "no such bucket"),
        (caused(OSError("x"), ClientError("InvalidRequest", 400)), "the request was refused"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be used"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be used"),
    ],
)
def test_what_a_person_has_to_mend_is_one_message_with_a_remedy(error, message):
    told = explained(error, "s3://bucket/x")
    assert isinstance(told, UserError)
    assert str(told).startswith("s3://bucket/x")
    assert message in told.message
    assert told.hint


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError(),
        caused(OSError("x"), ClientError("InternalError", 500)),
        caused(OSError("x"), ClientError("SlowDown", 503)),
        caused(OSError("x"), ClientError("RequestTimeout", 400)),
        HttpError(429),
        HttpError(502),
    ],
)
def test_what_may_pass_is_tried_again(error):
    assert isinstance(explained(error, "s3://bucket/x"), TransientError)


def test_secrets_in_a_librarys_message_are_not_shown():
    told = explained(ConnectionError("GET http://u:pw@h/b?X-Amz-Signature=zz"), "s3://b")
    assert "pw" not in str(told)
    assert "zz" not in str(told)
