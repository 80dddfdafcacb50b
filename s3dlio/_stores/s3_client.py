"""Requests to S3 through awscrt: signing, connections and TLS are its, repetitions and deadlines are ours.

A request runs on awscrt's event loops; its callbacks and those of the clock come from threads of their own.  Nothing
reads or writes the caller's memory any more once a request has ended, however it did.
"""

from __future__ import annotations

import atexit
import collections
import ctypes
import gc
import heapq
import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote, urlsplit

import awscrt.auth
import awscrt.common
import awscrt.exceptions
import awscrt.http
import awscrt.io
import awscrt.s3

from s3dlio import _errors
from s3dlio._logging import logger
from s3dlio._native import ffi
from s3dlio._stores import s3_xml
from s3dlio._stores.s3_settings import S3Settings

# Longer than any list of 1,000 keys of 1,024 bytes, each byte as %XX.
_MAX_ANSWER = 16 << 20

# One event loop moves more than a network of 10 Gbit/s; a second helps where TLS takes the time.
_EVENT_LOOPS = 2

_MAX_BACKOFF = 20.0

# Bytes a second; what is slower than this is taken for stalled.
LEAST_RATE = 256 << 10

# What the garbage collector found to do.  It may come on any thread and under any lock, so that it only notes it.
_left: collections.deque[Callable[[], None]] = collections.deque()


def leave_work(work: Callable[[], None]) -> None:
    """Has something done soon, by a thread that may wait."""
    _left.append(work)


def run_left_work() -> None:
    while _left:
        try:
            work = _left.popleft()
        except IndexError:  # another thread was quicker
            return
        try:
            work()
        except Exception as error:
            logger.warning("left undone: %s", error)


@dataclass(frozen=True)
class Answer:
    """What a server said: header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class DeclinedError(Exception):
    """Raised by a function that was to say where an answer goes: there is no place for it."""


@dataclass
class Call:
    """What to ask.  ``data`` is the body, ``into`` (a pointer) where the answer's goes, if not into `Answer`.
    ``make_room`` finds that place when it is told the answer's headers, or raises `DeclinedError`."""

    operation: str
    method: str
    bucket: str
    key: str = ""
    query: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: memoryview | bytes | None = None
    into: Any = None
    make_room: Callable[[dict[str, str]], Any] | None = None
    accept: tuple[int, ...] = (200, 204, 206)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class _Body(io.RawIOBase):
    """A request's body, which can be taken away while awscrt still holds on to it."""

    def __init__(self, data: memoryview, moved: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._data: memoryview | None = data
        self.size = len(data)
        self._position = 0
        self._moved = moved

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        size = len(target)
        with self._lock:
            if self._data is None:
                return 0  # broken off: too few bytes, so that nothing is stored
            part = self._data[self._position : self._position + size]
            size = len(part)
            target[:size] = part
        self._position += size
        self._moved()
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        self._position = base[whence] + offset
        return self._position

    def take_away(self) -> None:
        with self._lock:
            self._data = None


class Request:
    """A call and its repetitions, sent by `start`.  ``on_done`` is told the end from another thread, once: the answer
    or the error.  `wait` is for a caller that has nothing else to do."""

    def __init__(
        self, connection: Connection, call: Call, on_done: Callable[[Answer | Exception], None] | None = None
    ) -> None:
        self._connection = connection
        self._call = call
        self._on_done = on_done
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._result: Answer | Exception | None = None
        self._began = time.monotonic()
        self._attempts = 0
        self._damaged = 0
        self._attempt: _Attempt | None = None

    def start(self) -> None:
        """Sends it.  A caller that Ctrl-C may break off here has it already, to cancel it."""
        run_left_work()
        self._connection.add(self)
        _clock.watch(self._connection)
        self._start()

    def wait(self) -> Answer:
        try:
            self._ended.wait()
        except BaseException:
            self.cancel()
            raise
        result = self._result
        assert result is not None
        if isinstance(result, _errors.S3dlioError):
            # A copy: with its traceback the error would hold the frames of all who waited for it.
            raise _errors.copy_of(result)
        if isinstance(result, Exception):
            raise result
        return result

    def has_ended(self, seconds: float) -> bool:
        """Waits so long for its end."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Breaks the request off.  Nothing uses its memory any more on return."""
        self._end(
            _errors.ClosedError(f"{self._what()}: broken off", operation=self._call.operation, uri=self._call.uri)
        )
        # Another thread may be ending it at this moment.
        self._ended.wait()

    def stalled(self, now: float) -> None:
        """For the clock: an attempt without progress, or a request without an end, is given up."""
        attempt = self._attempt
        settings = self._connection.settings
        if now - self._began > settings.operation_timeout:
            self._end(self._timed_out(f"not done after {settings.operation_timeout:g} s"))
        elif attempt is not None and now - attempt.moved_at > attempt.patience:
            self._again(attempt, self._timed_out(f"nothing has come for {attempt.patience:g} s"))

    def _start(self) -> None:
        with self._lock:
            if self._result is not None:
                return
            self._attempts += 1
            attempt = self._attempt = _Attempt(self._connection, self._call)
        try:
            attempt.send(lambda outcome: self._attempt_done(attempt, outcome))
        except _errors.S3dlioError as error:
            self._end(error)
        except Exception as error:  # it was never sent
            self._end(_translate(error, self._what(), self._call))

    def _attempt_done(self, attempt: _Attempt, outcome: Answer | Exception) -> None:
        if attempt is not self._attempt:
            return  # given up before
        try:
            self._take_in(attempt, outcome)
        except Exception as error:  # of ours; without an end the caller would wait for ever
            self._end(_translate(error, self._what(), self._call))

    def _take_in(self, attempt: _Attempt, outcome: Answer | Exception) -> None:
        if isinstance(outcome, Answer):
            self._judge(attempt, outcome)
        elif isinstance(outcome, DeclinedError):
            self._end(outcome)
        elif isinstance(outcome, _errors.S3dlioError):
            self._again(attempt, outcome)
        else:
            error = _translate(outcome, self._what(), self._call)
            if _is_final(outcome):
                self._end(error)
            else:
                self._again(attempt, error)

    def _judge(self, attempt: _Attempt, answer: Answer) -> None:
        failure = s3_xml.error_of(answer.body)
        if answer.status in self._call.accept and failure is None:
            self._end(answer)
            return
        code, message = failure or ("", "")
        error = error_of_answer(answer, code, message, self._what(), self._call, self._attempts)
        if code == "BadDigest" or code.startswith("XAmzContent"):  # damaged on the way: the block is still whole
            self._damaged += 1
            if self._damaged <= 3:
                self._again(attempt, error)
                return
        if answer.status in (408, 429, 500, 502, 503, 504) or code in _PASSING:
            self._again(attempt, error)
        else:
            self._end(error)

    def _again(self, attempt: _Attempt, error: _errors.S3dlioError) -> None:
        """Repeats the call after a while, unless it was repeated often enough."""
        settings = self._connection.settings
        with self._lock:
            if self._result is not None or attempt is not self._attempt:
                return
            self._attempt = None
            attempt.take_away()  # before a caller's cancel() can find nothing to take away
        if self._attempts > settings.retries:
            if self._attempts > 1:
                error.args = (f"{error} (tried {self._attempts} times)",)
            self._end(error)
            return
        delay = min(settings.backoff * 2 ** (self._attempts - 1), _MAX_BACKOFF)
        # Spread, so that clients which failed together do not come back together.
        delay *= random.uniform(0.5, 1.0)
        logger.debug("%s; again in %.2f s", error, delay)
        _clock.after(delay, self._start)

    def _end(self, result: Answer | Exception) -> None:
        with self._lock:
            if self._result is not None:
                return
            if isinstance(result, _errors.S3dlioError) and result.attempts is None:
                result.attempts = self._attempts
            self._result = result
            attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.take_away()
        self._call.data = self._call.into = self._call.make_room = None
        self._connection.forget(self)
        on_done, self._on_done = self._on_done, None
        self._ended.set()
        if on_done is not None:
            on_done(result)

    def _timed_out(self, how: str) -> _errors.TimedOutError:
        return _errors.TimedOutError(f"{self._what()}: {how}", operation=self._call.operation, uri=self._call.uri)

    def _what(self) -> str:
        return f"{self._call.operation} {self._call.uri}"


class _Attempt:
    """One try of a call."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self.moved_at = time.monotonic()
        size = len(call.data) if call.data is not None else len(call.into) if call.into is not None else 0
        # awscrt takes a body at once and hands one over when it is complete, so that it is not seen to move.
        self.patience = connection.settings.stall_timeout + size / LEAST_RATE
        self._lock = threading.Lock()
        self._connection = connection
        self._call = call
        self._body = None if call.data is None else _Body(memoryview(call.data), self._moved)
        self._into = call.into
        self._received = 0
        self._chunks: list[bytes] = []
        self._status = 0
        self._headers: dict[str, str] = {}
        self._request: Any = None
        self._gone = False

    def send(self, on_done: Callable[[Answer | Exception], None]) -> None:
        call = self._call
        host, path = self._connection.place(call.bucket, call.key)
        headers = awscrt.http.HttpHeaders([("host", host), *call.headers])
        if self._body is not None:
            headers.add("content-length", str(self._body.size))
        elif call.method in ("PUT", "POST"):
            headers.add("content-length", "0")
        target = path + ("?" + call.query if call.query else "")
        http = awscrt.http.HttpRequest(call.method, target, headers, self._body)

        def done(error: Exception | None = None, error_body: bytes | None = None, **details: Any) -> None:
            status = details.get("status_code")
            if isinstance(error, awscrt.s3.S3ResponseError) and status:
                headers = {name.lower(): value for name, value in details.get("error_headers") or ()}
                on_done(Answer(status, headers, error_body or b""))
            elif error is not None:
                on_done(error)
            elif cut := self._is_cut():
                on_done(_errors.StorageError(f"{call.operation} {call.uri}: {cut}", uri=call.uri))
            else:
                on_done(Answer(self._status, self._headers, b"".join(self._chunks)))

        request = self._connection.client().make_request(
            type=awscrt.s3.S3RequestType.DEFAULT,
            operation_name=call.operation,
            request=http,
            on_headers=self._on_headers,
            on_body=self._on_body,
            on_done=done,
        )
        # It would hold on to this object, which holds on to it: so only while it can be of use.
        self._request = request
        if self._gone:
            self._let_go()

    def take_away(self) -> None:
        """Ends it: from here on awscrt gets no byte of the caller's memory, and puts none there."""
        with self._lock:
            self._gone = True
            self._into = None
        if self._body is not None:
            self._body.take_away()
        self._let_go()

    def _let_go(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def _moved(self) -> None:
        self.moved_at = time.monotonic()

    def _on_headers(self, status_code: int, headers: Iterable[tuple[str, str]], **_: Any) -> None:
        self._moved()
        self._status = status_code
        self._headers = {name.lower(): value for name, value in headers}
        make_room = self._call.make_room
        if make_room is not None and status_code in self._call.accept:
            self._into = make_room(self._headers)
        elif (
            self._into is None
            and self._call.method != "HEAD"
            and int(self._headers.get("content-length", "0")) > _MAX_ANSWER
        ):
            raise _errors.StorageError(f"{self._call.operation} {self._call.uri}: an answer that is too long")

    def _on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        self._moved()
        size = len(chunk)
        with self._lock:
            if self._gone:
                raise _errors.ClosedError("the request was broken off")
            if self._into is None or self._status not in self._call.accept:
                if self._received + size > _MAX_ANSWER:
                    raise _errors.StorageError(f"{self._call.operation} {self._call.uri}: an answer that is too long")
                self._chunks.append(bytes(chunk))
            else:
                if self._received + size > len(self._into):
                    text = f"{self._call.operation} {self._call.uri}: more bytes than were asked for"
                    raise _errors.StorageError(text)
                ffi.memmove(self._into + self._received, chunk, size)
            self._received += size

    def _is_cut(self) -> str | None:
        announced = self._headers.get("content-length")
        if self._call.method != "HEAD" and announced is not None and self._received != int(announced):
            return f"the answer ended after {self._received} of {announced} bytes"
        return None


class Connection:
    """A client of one process for one place and one set of settings."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self._client: Any = None
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        endpoint = urlsplit(settings.endpoint_url) if settings.endpoint_url else None
        self._secure = endpoint is None or endpoint.scheme == "https"
        self._host = endpoint.netloc if endpoint else None
        self._path = endpoint.path.rstrip("/") if endpoint else ""

    def begin(self, call: Call, on_done: Callable[[Answer | Exception], None] | None = None) -> Request:
        request = Request(self, call, on_done)
        request.start()
        return request

    def ask(self, call: Call) -> Answer:
        request = Request(self, call)
        try:
            request.start()
            return request.wait()
        except BaseException:
            request.cancel()
            raise

    def add(self, request: Request) -> None:
        with self._lock:
            self._requests.add(request)

    def forget(self, request: Request) -> None:
        with self._lock:
            self._requests.discard(request)

    def look(self, now: float) -> None:
        """For the clock: gives up what does not move."""
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.stalled(now)

    def is_busy(self) -> bool:
        return bool(self._requests)

    def close(self) -> None:
        """Breaks off what is under way and lets the client go; the next request makes a new one."""
        with self._lock:
            requests = list(self._requests)
            self._client = None
        for request in requests:
            request.cancel()

    def has_client(self) -> bool:
        return self._client is not None

    def abandon(self) -> None:
        """In the child of a fork: keeps the parent's client from ever being let go, and begins anew."""
        for kept in (self._client, *self._requests):
            if kept is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        self._client, self._requests, self._lock = None, set(), threading.Lock()

    def place(self, bucket: str, key: str) -> tuple[str, str]:
        """Host and path of an object (Amazon S3 User Guide, "Virtual hosting of buckets")."""
        settings = self.settings
        if self._host is None:
            suffix = "amazonaws.com.cn" if (settings.region or "").startswith("cn-") else "amazonaws.com"
            host = f"s3.{settings.region}.{suffix}"
        else:
            host = self._host
        by_path = settings.addressing == "path" or (
            settings.addressing == "auto" and (self._host is not None or "." in bucket)
        )
        escaped = quote(key, safe="-._~/")
        if by_path:
            return host, f"{self._path}/{quote(bucket, safe='')}" + (f"/{escaped}" if key else "")
        return f"{bucket}.{host}", f"{self._path}/{escaped}"

    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        settings = self.settings
        loops = awscrt.io.EventLoopGroup(_EVENT_LOOPS)
        bootstrap = awscrt.io.ClientBootstrap(loops, awscrt.io.DefaultHostResolver(loops))
        signing = None
        if not settings.anonymous:
            signing = awscrt.s3.create_default_s3_signing_config(
                region=settings.region or "", credential_provider=_credentials(settings, bootstrap)
            )
        tls = None
        if self._secure and settings.ca_bundle:
            context = awscrt.io.TlsContextOptions()
            context.override_default_trust_store_from_path(ca_filepath=settings.ca_bundle)
            tls = awscrt.io.ClientTlsContext(context).new_connection_options()
        mode = awscrt.s3.S3RequestTlsMode
        return awscrt.s3.S3Client(
            bootstrap=bootstrap,
            region=settings.region or "",
            tls_mode=mode.ENABLED if self._secure else mode.DISABLED,
            tls_connection_options=tls,
            signing_config=signing,
            retry_config=awscrt.s3.S3RetryConfig(retry_mode=awscrt.s3.S3RetryMode.NONE),
            connect_timeout_ms=max(1, int(settings.connect_timeout * 1000)),
            memory_limit=1 << 30,
        )


def _credentials(settings: S3Settings, bootstrap: Any) -> Any:
    provider = awscrt.auth.AwsCredentialsProvider
    if settings.credentials is not None:
        own = settings.credentials

        def delegate() -> Any:
            try:
                return awscrt.auth.AwsCredentials(*own())
            except Exception as error:  # its text may hold a secret, and would be printed
                logger.error("the function for credentials failed: %s", type(error).__name__)
                raise RuntimeError(f"the function for credentials failed: {type(error).__name__}") from None

        return provider.new_delegate(delegate)
    if settings.access_key_id:
        return provider.new_static(settings.access_key_id, settings.secret_access_key, settings.session_token)
    if settings.profile:
        try:
            return provider.new_profile(bootstrap, profile_name=settings.profile)
        except Exception as error:
            raise _errors.InvalidInputError(f"the AWS profile {settings.profile!r} cannot be used: {error}") from error
    if settings.endpoint_url and not any(
        os.environ.get(name)
        for name in (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    ):
        # The metadata service of EC2 knows nothing of a store of somebody else, and asking takes seconds elsewhere.
        providers = [provider.new_environment()]
        with suppress(Exception):  # there are no such files
            providers.append(provider.new_profile(bootstrap))
        return provider.new_chain(providers)
    return provider.new_default_chain(bootstrap)


_PASSING = {
    "RequestTimeout",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ThrottlingException",
}

# Of awscrt.
_FINAL = {"AWS_ERROR_INVALID_ARGUMENT", "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE", "AWS_IO_DNS_INVALID_NAME"}

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


def error_of_answer(
    answer: Answer, code: str, message: str, what: str, call: Call, attempts: int
) -> _errors.S3dlioError:
    kind = _CODES.get(code) or _STATUSES.get(answer.status) or _errors.StorageError
    parts = [part for part in (f"HTTP {answer.status}", code, message) if part]
    if code in ("SlowDown", "ThrottlingException") or answer.status == 429:
        parts.append("the store throttles its clients: send fewer requests at once")
    request_id = answer.headers.get("x-amz-request-id")
    shown = ": ".join(parts) + (f" (request {request_id})" if request_id else "")
    error = kind(f"{what}: {shown}", operation=call.operation, uri=call.uri)
    error.status, error.code, error.request_id, error.attempts = answer.status, code or None, request_id, attempts
    return error


def _translate(error: Exception, what: str, call: Call) -> _errors.S3dlioError:
    name = getattr(error, "name", type(error).__name__)
    if name in ("AWS_IO_SOCKET_TIMEOUT", "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT"):
        kind: type[_errors.S3dlioError] = _errors.TimedOutError
    elif "CREDENTIALS" in name or "AUTH" in name:
        kind = _errors.PermissionDeniedError
    else:
        kind = _errors.StorageError
    hint = "; no credentials were found: see configure_s3()" if kind is _errors.PermissionDeniedError else ""
    translated = kind(
        f"{what}: {name}: {getattr(error, 'message', error)}{hint}", operation=call.operation, uri=call.uri
    )
    translated.__cause__ = error
    return translated


def _is_final(error: Exception) -> bool:
    """Whether the same call would fail again."""
    name = getattr(error, "name", "")
    if not name:
        return True  # an exception of our own callbacks
    return "CREDENTIALS" in name or "AUTH" in name or name in _FINAL


class _Clock:
    """A thread that looks after what is under way, and does what is to be done later.  Without either it ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._connections: set[Connection] = set()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), work))
            self._need_thread()

    def watch(self, connection: Connection) -> None:
        with self._changed:
            self._connections.add(connection)
            self._need_thread()

    def _need_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="s3dlio-s3-clock", daemon=True)
            self._thread.start()
        elif self._later:
            self._changed.notify()

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            due = []
            with self._changed:
                while self._later and self._later[0][0] <= now:
                    due.append(heapq.heappop(self._later)[2])
                connections = list(self._connections)
            run_left_work()
            for work in due:
                work()
            for connection in connections:
                connection.look(now)
            with self._changed:
                self._connections = {connection for connection in self._connections if connection.is_busy()}
                if not self._connections and not self._later:
                    self._thread = None
                    return
                wait = 0.25
                if self._later:
                    wait = min(wait, max(0.0, self._later[0][0] - time.monotonic()))
                self._changed.wait(wait)


_clock = _Clock()
_connections: dict[S3Settings, Connection] = {}
_making = threading.Lock()


def connection_for(settings: S3Settings) -> Connection:
    """The connection of this process for these settings."""
    found = _connections.get(settings)
    if found is None:
        with _making:
            found = _connections.setdefault(settings, Connection(settings))
    return found


# Fork.  A child can use neither the parent's threads nor its connections, and ends with a segmentation fault when it
# lets the parent's client go.  So what is idle is let go before, and what is busy stays for ever in the child.


def _before_fork() -> None:
    idle = [connection for connection in _connections.values() if connection.has_client() and not connection.is_busy()]
    for connection in idle:
        connection.close()
    if idle and threading.current_thread() is threading.main_thread():
        gc.collect()
        awscrt.common.join_all_native_threads(timeout_sec=2.0)


def _in_child() -> None:
    global _clock, _connections, _making
    for connection in _connections.values():
        connection.abandon()
    _clock, _connections, _making = _Clock(), {}, threading.Lock()


def close_all() -> None:
    """Breaks off what is under way and lets all clients go."""
    for connection in list(_connections.values()):
        connection.close()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
atexit.register(close_all)
