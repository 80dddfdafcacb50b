"""Breaking off what another thread does, as Ctrl-C does with the main thread.

Work that lasts looks now and then (`check`), and is woken where it waits; it then clears up as after any failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_threads = threading.local()


class Cancelled(BaseException):
    """What comes up in a thread whose work is broken off.  Nobody outside of the package meets it."""


class Cancellation:
    """Whether the work of one thread is to be broken off.  That comes up once: what clears up is left alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []
        self.is_wanted = False
        self.has_come_up = False

    def cancel(self) -> None:
        """From any thread.  Returns at once."""
        with self._lock:
            self.is_wanted = True
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Meanwhile it is the work of this thread that `cancel` breaks off."""
        before = current()
        _threads.current = self
        try:
            yield
        finally:
            _threads.current = before

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Meanwhile ``wake`` is called when there is something to `check`, from any thread: for who waits for something
        else."""
        with self._lock:
            self._wakers.append(wake)
            comes_up = self.is_wanted and not self.has_come_up
        if comes_up:
            wake()
        try:
            yield
        finally:
            with self._lock:
                self._wakers.remove(wake)

    def check(self) -> None:
        """Raises Cancelled if the work is to be broken off."""
        if self.is_wanted and not self.has_come_up:
            self.has_come_up = True
            raise Cancelled


def current() -> Cancellation | None:
    """What may break off the work of this thread."""
    found: Cancellation | None = getattr(_threads, "current", None)
    return found


def teller() -> Callable[[], bool]:
    """What tells any thread, at no cost, whether the work of this one is to be broken off; not what clears up then."""
    cancellation = current()
    if cancellation is None or cancellation.has_come_up:
        return lambda: False
    return lambda: cancellation.is_wanted


def check() -> None:
    """Raises Cancelled if the work of this thread is to be broken off."""
    cancellation = current()
    if cancellation is not None:
        cancellation.check()
