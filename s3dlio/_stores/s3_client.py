"""The connections to S3 of this process, one for each set of settings, and what becomes of them in a fork.

Signing, sockets and TLS are awscrt's; repetitions and deadlines are ours.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import awscrt.common
import awscrt.io
import awscrt.s3

from s3dlio._stores import s3_clock
from s3dlio._stores.s3_credentials import ask_function, provider_of
from s3dlio._stores.s3_http import Answer, AnyPool, Call, Exchange, Pool
from s3dlio._stores.s3_request import Request, break_off, breaking_off
from s3dlio._stores.s3_settings import S3Settings

if TYPE_CHECKING:
    import ssl

    from s3dlio._stores.s3_bulk import BulkPool

# One event loop moves 10 Gbit/s.  More of them help where there are processors to run them beside the caller: with TLS
# the most, since only what is done outside of Python goes on at the same time.
_EVENT_LOOPS = max(1, min(4, len(os.sched_getaffinity(0)) // 2))

# S3 refuses a request whose date is 15 minutes off.
_MAX_SIGNING_AGE = 30.0


class _Client:
    """What a connection needs of awscrt, made with the first request."""

    def __init__(self, settings: S3Settings, is_secure: bool) -> None:
        self._settings = settings
        loops = awscrt.io.EventLoopGroup(_EVENT_LOOPS)
        # Set when its threads have ended, after it was let go.
        self.has_ended: threading.Event = loops.shutdown_event
        self._bootstrap = awscrt.io.ClientBootstrap(loops, awscrt.io.DefaultHostResolver(loops))
        self._tls = None
        if is_secure:
            options = awscrt.io.TlsContextOptions()
            settings.check_bundle()
            if settings.ca_bundle:
                options.override_default_trust_store_from_path(ca_filepath=settings.ca_bundle)
            self._tls = awscrt.io.ClientTlsContext(options)
        self._function = None if settings.anonymous else settings.credentials
        self._provider = None
        if not settings.anonymous and settings.credentials is None:
            self._provider = provider_of(settings, self._bootstrap)
        self._signing: tuple[float, Any] = (0.0, None)
        self._pools: dict[str, Pool] = {}
        self._bulk_pools: dict[str, BulkPool] = {}
        self._bulk_tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def pool(self, netloc: str) -> Pool:
        with self._lock:
            found = self._pools.get(netloc)
            if found is None:
                host, port = self._place(netloc)
                timeout = self._settings.connect_timeout
                found = self._pools[netloc] = Pool(host, port, self._bootstrap, self._tls, timeout)
            return found

    def bulk_pool(self, netloc: str) -> BulkPool:
        from s3dlio._stores import s3_bulk  # with Python's TLS, which not everybody needs

        header = self.pool(netloc).host_header
        with self._lock:
            found = self._bulk_pools.get(netloc)
            if found is None:
                host, port = self._place(netloc)
                if self._tls is not None and self._bulk_tls is None:  # once: the system's certificates are many
                    self._bulk_tls = s3_bulk.tls_context(self._settings.ca_bundle)
                timeout = self._settings.connect_timeout
                found = self._bulk_pools[netloc] = s3_bulk.BulkPool(host, port, header, self._bulk_tls, timeout)
            return found

    def _place(self, netloc: str) -> tuple[str, int]:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname or "", parts.port or (443 if self._tls is not None else 80)

    def signing(self) -> Any:
        """How to sign now: it carries the date."""
        if self._function is not None:
            return self._sign_as(ask_function(self._function))
        if self._provider is None:
            return None
        now = time.monotonic()
        since, config = self._signing
        if config is None or now - since > _MAX_SIGNING_AGE:
            config = self._sign_as(self._provider)
            self._signing = now, config
        return config

    def _sign_as(self, provider: Any) -> Any:
        region = self._settings.region or ""
        return awscrt.s3.create_default_s3_signing_config(region=region, credential_provider=provider)

    def close(self) -> None:
        with self._lock:
            pools: list[AnyPool] = [*self._pools.values(), *self._bulk_pools.values()]
            self._pools, self._bulk_pools = {}, {}
        for pool in pools:
            pool.close()


class Connection:
    """The way to one place with one set of settings."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self._client: _Client | None = None
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        endpoint = urlsplit(settings.endpoint_url) if settings.endpoint_url else None
        self._is_secure = endpoint is None or endpoint.scheme == "https"
        self._host = endpoint.netloc if endpoint else None
        self._path = endpoint.path.rstrip("/") if endpoint else ""

    def begin(self, call: Call, on_done: Callable[[Answer | Exception], None] | None = None) -> Request:
        request = Request(self, call, on_done)
        request.start()
        return request

    async def ask(self, call: Call) -> Answer:
        request = Request(self, call)
        try:
            request.start()
            return await request
        except BaseException as reason:
            await breaking_off([request], reason)
            raise

    def exchange(self, call: Call, on_done: Callable[[Exchange, Answer | Exception], None]) -> Exchange:
        """For a request: one attempt."""
        host, path = self.place(call.bucket, call.key)
        client = self.client()
        if call.is_long():
            from s3dlio._stores.s3_bulk import BulkExchange

            return BulkExchange(client.bulk_pool(host), call, path, client.signing, on_done)
        return Exchange(client.pool(host), call, path, client.signing, on_done)

    def add(self, request: Request) -> None:
        with self._lock:
            self._requests.add(request)
        try:
            s3_clock.watch(self)
        except BaseException:
            self.forget(request)
            raise

    def forget(self, request: Request) -> None:
        with self._lock:
            self._requests.discard(request)

    def look(self, now: float) -> None:
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.look(now)

    def is_busy(self) -> bool:
        return bool(self._requests)

    def close(self) -> threading.Event | None:
        """Breaks off what is under way and lets the client go; the next request makes a new one.  Returns what will be
        set when its threads have ended."""
        with self._lock:
            requests = list(self._requests)
            client, self._client = self._client, None
        break_off(requests)
        if client is None:
            return None
        client.close()
        return client.has_ended

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

    def client(self) -> _Client:
        with self._lock:
            if self._client is None:
                self._client = _Client(self.settings, self._is_secure)
            return self._client


# How long a fork waits at most, in seconds, for the threads of idle clients.
_FORK_WAIT = 2.0

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
    ended = [connection.close() for connection in idle]
    if not idle or threading.current_thread() is not threading.main_thread():
        return
    gc.collect()
    deadline = time.monotonic() + _FORK_WAIT
    for event in ended:
        if event is not None:
            event.wait(max(0.0, deadline - time.monotonic()))
    # The last of their threads may be in its last lines.  Not for longer: those of busy clients stay, and in the child
    # of a fork those that the parent had are still counted.
    awscrt.common.join_all_native_threads(timeout_sec=0.01)


def _in_child() -> None:
    global _connections, _making
    for connection in _connections.values():
        connection.abandon()
    _connections, _making = {}, threading.Lock()


def close_all() -> None:
    """Breaks off what is under way and lets all clients go."""
    for connection in list(_connections.values()):
        connection.close()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
atexit.register(close_all)
