"""What comes to a process that uses a store behind a network: Ctrl-C, and forks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from forker import has_ended
from proxy import wait_until

import s3dlio


def interrupt(work: Callable[[], object], is_time: Callable[[], bool] = lambda: True, seconds: float = 1.5) -> None:
    """Ctrl-C after half a second, and not before it is time.  The work has to end within so many seconds."""
    began = []

    def strike() -> None:
        time.sleep(0.5)
        wait_until(is_time, 10)
        began.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    thread = threading.Thread(target=strike)
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            work()
            thread.join(20)
        assert is_time()
        assert time.monotonic() - began[0] < seconds
    finally:
        thread.join(20)
        signal.signal(signal.SIGALRM, before)


def check_clients_of_children(place: str) -> None:
    """A child of a fork cannot use the parent's client, and makes its own."""
    s3dlio.put(f"{place}/forked", b"from the parent")
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                good = s3dlio.get(f"{place}/forked") == b"from the parent"
                s3dlio.put(f"{place}/forked-{number}", str(number).encode())
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert s3dlio.get(f"{place}/forked") == b"from the parent"
    assert [has_ended(child, 60) for child in children] == [True] * 4
    assert [s3dlio.get(f"{place}/forked-{number}") for number in range(4)] == [b"0", b"1", b"2", b"3"]
