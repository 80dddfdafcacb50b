"""What went wrong with a request to S3, as our errors, and whether it may go better the next time."""

from __future__ import annotations

import socket

from s3dlio import _errors
from s3dlio._stores.s3_credentials import FunctionFailedError
from s3dlio._stores.s3_http import Answer, Call

_PASSING = {
    "RequestTimeout",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ThrottlingException",
}

# Of awscrt, and of Python's sockets.
_FINAL = {
    "SSLCertVerificationError",
    "AWS_ERROR_INVALID_ARGUMENT",
    "AWS_ERROR_HTTP_INVALID_HEADER_VALUE",
    "AWS_ERROR_HTTP_INVALID_PATH",
    "AWS_IO_DNS_INVALID_NAME",
    "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE",
    "AWS_IO_TLS_HOST_NAME_MISMATCH",
}

_CODES: dict[str, type[_errors.S3dlioError]] = {
    "NoSuchKey": _errors.NotFoundError,
    "NoSuchBucket": _errors.NotFoundError,
    "NoSuchUpload": _errors.NotFoundError,
    "BadDigest": _errors.CorruptDataError,
    "InvalidBucketName": _errors.InvalidInputError,
    "KeyTooLongError": _errors.InvalidInputError,
    "NotImplemented": _errors.UnsupportedError,
}

_STATUSES: dict[int, type[_errors.S3dlioError]] = {
    401: _errors.PermissionDeniedError,
    403: _errors.PermissionDeniedError,
    404: _errors.NotFoundError,
    501: _errors.UnsupportedError,
}


# The answer to a HEAD has no body that would say more than its status.
_WORDS = {
    301: "the bucket is elsewhere",
    400: "refused, and a HEAD request is not told why",
    401: "the credentials are not accepted",
    403: "access is denied, or the credentials are wrong",
    404: "there is no such object, or no such bucket",
}


def error_of_answer(answer: Answer, code: str, message: str, call: Call) -> _errors.S3dlioError:
    kind = _CODES.get(code) or _STATUSES.get(answer.status) or _errors.StorageError
    words = message or ("" if code else _WORDS.get(answer.status, ""))
    parts = [part for part in (f"HTTP {answer.status}", code, words) if part]
    if code in ("SlowDown", "ThrottlingException") or answer.status == 429:
        parts.append("the store throttles its clients: send fewer requests at once")
    region = answer.headers.get("x-amz-bucket-region")
    if region and answer.status in (301, 307, 400):
        parts.append(f"the bucket is in the region {region}, see configure_s3(region=…)")
    if _refuses_checksums(answer.status, code, message, call):
        parts.append("a store that takes no checksums needs configure_s3(checksums=False)")
    request_id = answer.headers.get("x-amz-request-id")
    shown = ": ".join(parts) + (f" (request {request_id})" if request_id else "")
    error = kind(f"{call.what}: {shown}", operation=call.operation, uri=call.uri)
    error.status, error.code, error.request_id = answer.status, code or None, request_id
    return error


def _refuses_checksums(status: int, code: str, message: str, call: Call) -> bool:
    """Whether that may be what is wrong: stores which do not know the headers say so in different ways."""
    if not any(name.startswith("x-amz-checksum-") for name, _ in call.headers) or call.method not in ("PUT", "POST"):
        return False
    words = f"{code} {message}".lower()
    return status == 501 or (status == 400 and ("checksum" in words or "x-amz-" in words or code == "InvalidArgument"))


def translate(error: Exception, call: Call, host: str) -> _errors.S3dlioError:
    """An error of awscrt, or of ours, that a call to this host met."""
    if isinstance(error, _errors.S3dlioError):
        return error
    if isinstance(error, FunctionFailedError):
        return _errors.PermissionDeniedError(f"{call.what}: {error}", operation=call.operation, uri=call.uri)
    name = getattr(error, "name", type(error).__name__)
    kind: type[_errors.S3dlioError] = _errors.StorageError
    how = f"{host}: {name}: {getattr(error, 'message', error)}"
    if name in ("AWS_IO_SOCKET_TIMEOUT", "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT", "TimeoutError"):
        kind = _errors.TimedOutError
    elif "CREDENTIALS" in name or "AUTH" in name or "AWS_AUTH_" in str(error):  # of a signing in Python
        kind = _errors.PermissionDeniedError
        how = f"no credentials to sign with, see configure_s3(): {name}: {getattr(error, 'message', error)}"
    translated = kind(f"{call.what}: {how}", operation=call.operation, uri=call.uri)
    translated.__cause__ = error
    return translated


def is_final(error: Exception) -> bool:
    """Whether the same call would fail again."""
    if isinstance(error, OSError):  # of a socket
        return type(error).__name__ in _FINAL or getattr(error, "errno", None) == socket.EAI_NONAME
    name = getattr(error, "name", "")
    if not name:
        return True  # an exception of our own callbacks
    return "CREDENTIALS" in name or "AUTH" in name or name in _FINAL


def is_passing(status: int, code: str) -> bool:
    """Whether what an answer says may be otherwise in a moment."""
    return status in (408, 429, 500, 502, 503, 504) or code in _PASSING


def is_damage(code: str) -> bool:
    """Whether the bytes that came are not those that were sent."""
    return code == "BadDigest" or code.startswith("XAmzContent")
