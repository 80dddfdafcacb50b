"""The clients for Azure of this process, where a URI leads, and what errors mean."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import azure.core.exceptions as az
from azure.storage.blob import BlobClient, BlobProperties, BlobServiceClient, ContainerClient, ExponentialRetry

from s3dlio import _cancel, _errors
from s3dlio._logging import logger
from s3dlio._stores.azure_http import OverError, new_transport, watched
from s3dlio._stores.azure_settings import ACCOUNT, CONTAINER, AzureSettings
from s3dlio._stores.network import pause
from s3dlio._tasks import apart
from s3dlio._uri import Uri

Result = TypeVar("Result")


# The service takes a backslash for a slash, and who sends a URL leaves '.' and '..' out, if need be with the container:
# another blob than was meant.  The rest cannot be in a URL ("Naming and referencing containers, blobs, and metadata").
_NO_NAME = re.compile(r"(^|/)\.\.?(/|$)|[\\\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Place:
    """Where a URI leads.  ``prefix`` is what stands before the name of the blob in the URI's key."""

    account: str
    container: str
    blob: str
    prefix: str


def place_of(uri: Uri, settings: AzureSettings, operation: str) -> Place:
    """Reads ``az://account/container/blob``, of which account and container may be left out where settings name them.

    - ``az:///blob``: both are those of the settings.
    - ``az://account/container/blob``: always so if no account is set, or if it is this one.
    - ``az://container/blob``: if an account is set and the first name is another.
    """
    account = settings.named_account
    first, key = uri.container, uri.key
    if not first:
        container, blob, prefix = settings.container, key, ""
    elif account is not None and first != account:
        container, blob, prefix = first, key, ""
    else:
        account = first
        container, _, blob = key.partition("/")
        prefix = container + "/"
    if not account:
        raise _refused(uri, operation, "names no account, and AZURE_BLOB_ACCOUNT is not set")
    if not container:
        unset = "" if first else ", and AZURE_BLOB_CONTAINER is not set"
        raise _refused(uri, operation, "names no container" + unset)
    # Who leaves it out has to say it.
    taken = f"; as no account is set, {first!r} was taken for it" if settings.named_account is None else ""
    if not ACCOUNT.fullmatch(account):
        text = f"has {account!r}, which is no name of an account: 3 to 24 of a-z and 0-9"
        raise _refused(uri, operation, text + taken)
    if not CONTAINER.fullmatch(container):
        text = f"has {container!r}, which is no name of a container: 3 to 63 of a-z, 0-9 and single '-'"
        raise _refused(uri, operation, text + taken)
    if _NO_NAME.search(blob):
        raise _refused(
            uri,
            operation,
            f"has {blob!r}, which is no name of a blob: no '.' or '..' between slashes, no '\\', no controls",
        )
    try:
        settings.endpoint(account)
    except _errors.InvalidInputError as error:
        raise _named(error, uri, operation) from None
    return Place(account, container, blob, prefix)


def _named(error: _errors.S3dlioError, uri: Uri, operation: str, where: str = "") -> _errors.S3dlioError:
    """The same error, of what could not know for which operation it was."""
    return type(error)(f"{operation} {where or uri}: {error}", operation=operation, uri=str(uri))


def _refused(uri: Uri, operation: str, why: str) -> _errors.InvalidInputError:
    return _errors.InvalidInputError(f"{operation} {uri}: it {why}", operation=operation, uri=str(uri))


def check_blob(place: Place, uri: Uri, operation: str, kind: type[_errors.S3dlioError]) -> None:
    if not place.blob or (place.blob.endswith("/") and kind is not _errors.NotFoundError):
        raise kind(f"{operation} {uri}: names no object", operation=operation, uri=str(uri))


def check_account(place: Place, uri: Uri, settings: AzureSettings, operation: str) -> None:
    """Refuses what would name a blob if an account were set: who asks for that has left it out."""
    if place.prefix and not place.blob and settings.named_account is None:
        taken = f"as no account is set, {place.account!r} was taken for it, and {place.container!r} for the container"
        raise _refused(uri, operation, f"names no blob; {taken}")


# For programs that change their credentials again and again.
_MAX_CLIENTS = 16

_services: dict[tuple[AzureSettings, str], BlobServiceClient] = {}
_making = threading.Lock()


def _service(settings: AzureSettings, account: str) -> BlobServiceClient:
    found = _services.get((settings, account))
    if found is None:
        with _making:
            found = _services.get((settings, account))
            if found is None:
                found = _services[settings, account] = _new_service(settings, account)
                if len(_services) > _MAX_CLIENTS:
                    del _services[next(iter(_services))]  # its connections end with who still uses it
    return found


def _new_service(settings: AzureSettings, account: str) -> BlobServiceClient:
    kind, credential = settings.credentials()
    if kind == "key":
        credential = {"account_name": account, "account_key": credential}
    elif kind == "default":
        credential = _default_credential()
    url = settings.endpoint(account)
    return BlobServiceClient(
        url,
        credential=credential,
        retry_policy=ExponentialRetry(retry_total=0),  # `ask` repeats, within a deadline
        transport=new_transport(settings.connect_timeout, settings.stall_timeout),
    )


def _default_credential() -> Any:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise _errors.PermissionDeniedError(
            "no credentials for Azure: set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or "
            "AZURE_STORAGE_SAS_TOKEN, or install azure-identity (pip install 's3dlio-cffi[azure-identity]')"
        ) from error
    return DefaultAzureCredential()


def container_client(settings: AzureSettings, place: Place) -> ContainerClient:
    """Within `ask`: to make one takes a lock of logging's, which Ctrl-C could leave held, and may fail."""
    return _service(settings, place.account).get_container_client(place.container)


def properties(settings: AzureSettings, place: Place, operation: str, uri: Uri) -> BlobProperties:
    """What the service tells of a blob."""

    def call() -> BlobProperties:
        found = blob_client(settings, place).get_blob_properties()
        if not (found.etag and found.last_modified and found.blob_type):
            raise ValueError("the answer has no ETag, no time or no type of a blob")
        return found

    return ask(settings, operation, uri, call)


def blob_client(settings: AzureSettings, place: Place) -> BlobClient:
    """Within `ask`, as the other."""
    return _service(settings, place.account).get_blob_client(place.container, place.blob)


_DAMAGED = ("Md5Mismatch", "Crc64Mismatch", "InvalidMd5")

_CODES: dict[str, type[_errors.S3dlioError]] = {
    "InvalidBlockList": _errors.CorruptDataError,
    "InvalidResourceName": _errors.InvalidInputError,
    "InvalidUri": _errors.InvalidInputError,
}

# What the code does not say.
_HINTS = {
    # The service drops what is staged when another writer commits ("Put Block List", "Remarks").
    "InvalidBlockList": "another writer has stored this blob meanwhile, or the blocks are lost, as after a week",
}

_STATUSES: dict[int, type[_errors.S3dlioError]] = {
    401: _errors.PermissionDeniedError,
    403: _errors.PermissionDeniedError,
    404: _errors.NotFoundError,
    501: _errors.UnsupportedError,
}


# A block that was damaged on the way is sent again so often.
_MAX_DAMAGED = 3


def ask(
    settings: AzureSettings,
    operation: str,
    uri: Uri,
    call: Callable[[], Result],
    is_over: Callable[[], bool] = lambda: False,
) -> Result:
    """Calls into the SDK, again when it failed for a reason that may pass.  Its errors become ours.  ``is_over`` ends
    it, also in the middle of a transfer."""
    return apart(lambda: _ask(settings, operation, uri, call, is_over), may_stay=True)


def _ask(
    settings: AzureSettings, operation: str, uri: Uri, call: Callable[[], Result], is_over: Callable[[], bool]
) -> Result:
    where = _where(uri, settings, operation)
    deadline = time.monotonic() + settings.operation_timeout
    failure: _errors.S3dlioError
    cause: Exception
    for attempt in count(1):
        _cancel.check()
        try:
            with watched(deadline, settings.stall_timeout, is_over) as watch:
                return call()
        except _errors.S3dlioError as error:
            if error.operation is None:
                raise _named(error, uri, operation, where) from error
            raise
        except OverError as error:
            failure, cause, again = _broken_off(operation, uri, where, settings, deadline), error, False
        except az.AzureError as error:
            failure, cause = translate(error, operation, uri, where), error
            # Of two writers one loses all its blocks: to ask for them once more is enough.
            often = 1 if failure.code == "InvalidBlockList" else _MAX_DAMAGED
            again = (_is_damage(failure.code, str(failure)) and attempt <= often) or _may_pass(error)
        except Exception as error:  # the SDK cannot make sense of an answer, or refuses to ask
            text = f"{operation} {where}: {type(error).__name__}: {error}"
            failure, cause = _errors.StorageError(text, operation=operation, uri=str(uri)), error
            again = watch.has_sent
        delay = pause(settings, attempt)
        failure.attempts = attempt
        if not again or attempt > settings.retries or time.monotonic() + delay > deadline or is_over():
            if attempt > 1:
                failure.args = (f"{failure} (tried {attempt} times)",)
            try:
                raise failure from cause
            finally:
                del failure, cause  # else the traceback and this frame hold each other
        logger.debug("%s; again in %.2f s", failure, delay)
        until = time.monotonic() + delay
        while (left := until - time.monotonic()) > 0 and not is_over():
            _cancel.check()
            time.sleep(min(left, 0.2))
    raise AssertionError  # count() has no end


def new_thread(work: Callable[[], None]) -> threading.Thread:
    return threading.Thread(target=work, name="s3dlio-azure", daemon=True)


def start(thread: threading.Thread, operation: str, uri: Uri) -> None:
    try:
        thread.start()
    except RuntimeError as error:  # there are too many
        raise _errors.StorageError(f"{operation} {uri}: {error}", operation=operation, uri=str(uri)) from error


def _where(uri: Uri, settings: AzureSettings, operation: str) -> str:
    """The URI, and what it leaves out."""
    place = place_of(uri, settings, operation)
    whole = f"az://{place.account}/{place.container}/{place.blob}".rstrip("/")
    return str(uri) if str(uri).rstrip("/") == whole else f"{uri} ({whole})"


def _broken_off(operation: str, uri: Uri, where: str, settings: AzureSettings, deadline: float) -> _errors.S3dlioError:
    if time.monotonic() > deadline:
        text = f"{operation} {where}: not done after {settings.operation_timeout:g} s"
        return _errors.TimedOutError(text, operation=operation, uri=str(uri))
    return _errors.ClosedError(f"{operation} {where}: broken off", operation=operation, uri=str(uri))


def _is_damage(code: str | None, message: str) -> bool:
    """Whether the bytes that came are not those that were sent."""
    # A list that was damaged names other blocks; to commit it again harms nothing, as the ids are of this writer alone.
    # The last is what Azurite says for Md5Mismatch.
    return code in (*_DAMAGED, "InvalidBlockList", "InvalidXmlDocument") or (
        code == "InvalidOperation" and "contentMD5 doesn't match" in message
    )


def _may_pass(error: az.AzureError) -> bool:
    status = getattr(error, "status_code", None)
    if status is None:
        return not (isinstance(error, az.ClientAuthenticationError) or "CERTIFICATE_VERIFY_FAILED" in str(error))
    # An answer that says well and is none that the SDK knows was cut or mixed up on the way.
    return status < 300 or status in (408, 429, 500, 502, 503, 504)


def translate(error: az.AzureError, operation: str, uri: Uri, where: str) -> _errors.S3dlioError:
    status = getattr(error, "status_code", None)
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code)) if code else None
    response = getattr(error, "response", None)
    request_id = response.headers.get("x-ms-request-id") if response is not None else None
    if status is not None:
        damaged = _is_damage(code, str(getattr(error, "message", error)))
        kind = _CODES.get(code or "") or _STATUSES.get(status) or _errors.StorageError
        kind = _errors.CorruptDataError if damaged else kind
    elif isinstance(error, az.ClientAuthenticationError):
        kind = _errors.PermissionDeniedError
    elif "timed out" in str(error).lower():
        kind = _errors.TimedOutError
    else:
        kind = _errors.StorageError
    hint = _HINTS.get(code or "")
    parts = [part for part in (f"HTTP {status}" if status else "", code or "", _words(error), hint) if part]
    if status in (429, 503):
        parts.append("the service throttles its clients: send fewer requests at once")
    shown = ": ".join(parts) + (f" (request {request_id})" if request_id else "")
    translated = kind(f"{operation} {where}: {shown}", operation=operation, uri=str(uri))
    translated.status, translated.code, translated.request_id = status, code, request_id
    return translated


# How urllib3 names a connection, and what the SDK says of an answer without a body.
_NAMES = re.compile(r"\w+\(host='([^']*)', port='?(\d+)'?\)")
_NO_BODY = re.compile(r"Operation returned an invalid status '(.*)'")


def _words(error: az.AzureError) -> str:
    """What was met, and not by whom: urllib3 would say that the most tries were made, of each single one."""
    inner = getattr(error, "inner_exception", None)
    reason = getattr(inner.args[0], "reason", None) if inner is not None and inner.args else None
    # The rest repeats what follows, and may hold the text that was signed.
    first = (str(reason or getattr(error, "message", error)).splitlines() or [""])[0]
    return _NO_BODY.sub(r"\1", _NAMES.sub(r"\1:\2", first))


def close_all() -> None:
    """Lets the idle connections of this process go; the next request makes a new client."""
    global _services
    services, _services = _services, {}
    for service in services.values():
        service.close()


_of_parent: list[object] = []


def _in_child() -> None:
    """Connections of the parent are its own.  To close them here could wait for a lock that no thread gives back."""
    global _services, _making
    _of_parent.append(_services)
    _services, _making = {}, threading.Lock()


os.register_at_fork(after_in_child=_in_child)
