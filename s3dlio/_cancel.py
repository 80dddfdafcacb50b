"""Breaking off what another thread does, as Ctrl-C does with the main thread.

Work that lasts looks now and then (`check`), or listens while it waits; it then clears up as after any failure.
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
        self._listeners: list[Callable[[Cancelled], object]] = []
        self._is_wanted = False
        self._has_come_up = False

    def cancel(self) -> None:
        """From any thread.  Returns at once."""
        with self._lock:
            self._is_wanted = True
            self._tell()

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
    def told_to(self, listener: Callable[[Cancelled], object]) -> Iterator[None]:
        """Meanwhile ``listener`` is given what comes up, to raise it: for a thread that waits for something else too.
        Of several the innermost is."""
        with self._lock:
            self._listeners.append(listener)
            self._tell()
        was_raised = True
        try:
            yield
            was_raised = False
        finally:
            with self._lock:
                self._listeners.pop()
                if not was_raised:  # all was done when it was told
                    self._has_come_up = False

    def check(self) -> None:
        """Raises Cancelled if the work is to be broken off."""
        if self._is_wanted and not self._has_come_up:
            self._has_come_up = True
            raise Cancelled

    def _tell(self) -> None:
        if self._is_wanted and not self._has_come_up and self._listeners:
            self._has_come_up = True
            self._listeners[-1](Cancelled())


def current() -> Cancellation | None:
    """What may break off the work of this thread."""
    found: Cancellation | None = getattr(_threads, "current", None)
    return found


def check() -> None:
    """Raises Cancelled if the work of this thread is to be broken off."""
    cancellation = current()
    if cancellation is not None:
        cancellation.check()
