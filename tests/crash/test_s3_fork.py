"""Processes that are made while requests to S3 are under way: they end, have the right data, and harm nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import s3_forker
from harness import effort


def run(**job: Any) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-X", "dev", s3_forker.__file__, json.dumps({"client": "ours", "deadline": 60} | job)],
        capture_output=True,
        text=True,
        timeout=effort(200, 2000),
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(effort(300, 3000))
@pytest.mark.parametrize("how", ["os.fork", "fork", "forkserver", "spawn"])
def test_processes_made_beside_requests_work_and_harm_nobody(s3: str, how: str, figure: Callable[[str], None]) -> None:
    total = run(place=f"{s3}/made-{how}", how=how, rounds=effort(3 if how == "os.fork" else 1, 30))
    figure(f"s3 processes, {how}: {total['children']} children beside requests, {total['hung']} hung, 0 wrong")
    assert total["hung"] == 0


def test_data_loader_of_forked_workers_gets_the_right_data(s3: str, figure: Callable[[str], None]) -> None:
    epochs = effort(2, 20)
    total = run(place=f"{s3}/loader", how="loader", rounds=epochs)
    figure(
        f"s3 data loader: {epochs} epochs, {total['children']} workers, {total['objects']} objects, "
        f"{total['hung']} hung, {total['wrong']} wrong"
    )
    assert total["objects"] == epochs * s3_forker.OBJECTS
    assert total["hung"] == total["wrong"] == 0


def test_child_that_waits_for_a_lock_of_the_parent_is_seen_to_hang(s3: str) -> None:
    """A planted fault."""
    assert run(place=f"{s3}/locked", how="os.fork", client="locked", rounds=1, deadline=1)["hung"] > 0


def test_worker_with_other_data_is_seen(s3: str) -> None:
    """A planted fault."""
    assert run(place=f"{s3}/stale", how="loader", client="stale", rounds=1)["wrong"] > 0


FORKS = """
import os, sys, threading, time, warnings
import s3dlio

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
uri = sys.argv[1]
s3dlio.put(uri, b"content")
stop = threading.Event()

def ask(pause):
    while not stop.wait(pause):
        s3dlio.get(uri)

def fork():
    began = time.monotonic()
    child = os.fork()
    os.write(1, f"{time.monotonic() - began:.3f}\\n".encode())
    return child

threads = [threading.Thread(target=ask, args=(pause,)) for pause in (0, 0.001, 0.003)]
for thread in threads:
    thread.start()
time.sleep(0.2)
for _ in range(10):
    child = fork()
    if child == 0:
        s3dlio.get(uri)
        grandchild = fork()
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
stop.set()
"""


def test_fork_waits_for_no_thread_of_another(s3: str) -> None:
    # Neither for those of a client in use, nor in a child for those that its parent had: that took 2 s.
    done = subprocess.run(
        [sys.executable, "-c", FORKS, f"{s3}/forks"], capture_output=True, text=True, timeout=100, check=True
    )
    assert not done.stderr
    took = [float(line) for line in done.stdout.split()]
    assert len(took) == 40  # each fork is told of on both sides
    assert sorted(took)[-3] < 1.0  # not a busy machine's two worst
