"""What a storage library's error means: mend it, or try again later.

Every library has exceptions of its own, and none is imported here: an error is known by the
names of its classes and by the codes that it and its causes carry.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from selectit_dagster.artefacts.address import without_secrets
from selectit_dagster.errors import TransientError, UserError, first_line

_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
}
_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AccountProblem",
    "AllAccessDisabled",
    "401",
    "403",
}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_WRONG_REQUEST = {
    "ParamValidationError",
    "NoRegionError",
    "InvalidBucketName",
    "InvalidRegionError",
}
# 4xx that a later try may not meet
_PASSING = {"408", "425", "429", "RequestTimeout", "SlowDown", "RequestTimeTooSkewed"}
_LOCAL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _codes(error: BaseException) -> set[str]:
    """Return the codes, HTTP states and class names of an error and its causes."""
    found: set[str] = set()
    for one in _chain(error):
        found.update(kind.__name__ for kind in type(one).__mro__)
        for name in ("code", "status", "status_code", "error_code"):
            value: Any = getattr(one, name, None)
            if isinstance(value, int | str):
                found.add(str(value))
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
    return found


def is_no_bucket(error: BaseException) -> bool:
    """Tell whether a *not found* means the bucket and not the object."""
    return bool(_codes(error) & _NO_BUCKET) or "bucket does not exist" in str(error)


def explained(error: BaseException, address: str) -> UserError | TransientError:
    """Return the error as one message: a :class:`UserError` when only a person can mend it.

    Parameters
    ----------
    error:
        Whatever the library raised.
    address:
        What was read or written, without secrets.
    """
    codes = _codes(error)
    detail = without_secrets(first_line(error))
    if codes & _CREDENTIALS:
        return UserError(
            f"{address}: there are no usable credentials: {detail}",
            hint="they come from the environment, for instance AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS",
        )
    if is_no_bucket(error):
        return UserError(
            f"{address}: there is no such bucket: {detail}",
            hint="make the bucket first, or correct storage.url (or $SELECTIT_STORAGE)",
        )
    if codes & _REFUSED:
        return UserError(
            f"{address}: access is refused: {detail}",
            hint="check the credentials and their rights: reading, writing and listing",
        )
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in _LOCAL:
        return UserError(
            f"{address} cannot be used: {detail}",
            hint="choose a place that you may write to, with free space",
        )
    if codes & _WRONG_REQUEST or _is_wrong_request(codes):
        return UserError(
            f"{address}: the request was refused: {detail}",
            hint="check the address, the region and the endpoint (AWS_ENDPOINT_URL_S3)",
        )
    return TransientError(f"{address} cannot be reached: {detail}")


def _is_wrong_request(codes: set[str]) -> bool:
    refused = {code for code in codes if len(code) == 3 and code.startswith("4")}
    return bool(refused - _PASSING) and not codes & _PASSING
