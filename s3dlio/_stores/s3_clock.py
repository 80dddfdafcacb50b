"""A thread for what S3 requests need done later: to repeat them, to give up those that stall, to clear up.

It runs while there is something to do.
"""

from __future__ import annotations

import collections
import heapq
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Protocol

from s3dlio._logging import logger

# Seconds between two looks at what is under way.
_LOOK = 0.25


_is_exiting = False


def note_exit() -> None:
    """The interpreter ends, and may start no more threads."""
    global _is_exiting
    _is_exiting = True


class Watched(Protocol):
    def look(self, now: float) -> None:
        """Gives up what does not move."""

    def is_busy(self) -> bool:
        """Whether there is anything to look at."""


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
        _attempt(work)


def _attempt(work: Callable[[], None]) -> None:
    """Whatever is wrong with it: all the others depend on the thread."""
    try:
        work()
    except Exception as error:
        with suppress(Exception):
            logger.warning("left undone: %s", error)


class _Clock:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), work))
            self._need_thread()
            self._changed.notify()

    def watch(self, watched: Watched) -> None:
        with self._changed:
            self._watched.add(watched)
            self._need_thread()

    def _need_thread(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="s3dlio-s3-clock", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not _is_exiting:
                raise
            return  # from Python 3.12 on; what is sent now is looked after by whoever waits for it
        self._thread = thread

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            due = []
            with self._changed:
                while self._later and self._later[0][0] <= now:
                    due.append(heapq.heappop(self._later)[2])
                watched = list(self._watched)
            run_left_work()
            for work in due:
                _attempt(work)
            for each in watched:
                _attempt(partial(each.look, now))
            with self._changed:
                self._watched = {each for each in self._watched if each.is_busy()}
                if not self._watched and not self._later:
                    self._thread = None
                    return
                wait = _LOOK
                if self._later:
                    wait = min(wait, max(0.0, self._later[0][0] - time.monotonic()))
                self._changed.wait(wait)


_clock = _Clock()


def after(seconds: float, work: Callable[[], None]) -> None:
    """Has ``work`` done by the clock's thread, in so many seconds."""
    _clock.after(seconds, work)


def watch(watched: Watched) -> None:
    """Looks after this several times a second, for as long as it is busy."""
    _clock.watch(watched)


def _in_child() -> None:
    """A thread does not come along into the child of a fork."""
    global _clock
    _clock = _Clock()


os.register_at_fork(after_in_child=_in_child)
