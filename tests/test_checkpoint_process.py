"""Checkpoints at the end of a process, after a fork, and under Ctrl-C."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import s3dlio
from s3dlio import _native
from s3dlio._stores import file
from s3dlio._stores.registry import store_for
from s3dlio._uri import parse_uri

AT_EXIT = """
import atexit, sys, s3dlio
atexit.register(lambda: s3dlio.CheckpointStore(sys.argv[1]).save(1, 1, "x", b"the last words"))
"""


def test_save_at_the_exit_of_a_program(tmp_path: Path) -> None:
    """What first needed concurrent.futures then could not import it any more."""
    base = f"file://{tmp_path}"
    ended = subprocess.run([sys.executable, "-c", AT_EXIT, base], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert s3dlio.CheckpointStore(base).load_latest() == b"the last words"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_of_a_fork_drops_nothing_of_its_parent(tmp_path: Path) -> None:
    store = s3dlio.CheckpointStore(f"file://{tmp_path}")
    stream = store.writer(1, 0).get_distributed_shard_stream(1, 1, "x")
    stream.write_chunk(b"of the parent")
    go, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(go, 1)
            with stream:
                raise ZeroDivisionError
        except ZeroDivisionError:
            code = 0
        finally:
            os._exit(code)
    record = stream.finalize()
    store.writer(1, 0).finalize_distributed_checkpoint(1, 1, "x", [record])
    os.write(tell, b"1")
    os.close(go)
    os.close(tell)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.load_latest() == b"of the parent"


def test_reader_that_another_thread_closes_lives_until_its_read_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C during the load of a compressed shard closed the file under the thread that was reading from it,
    and the process died of it."""
    inside, go_on, freed = threading.Event(), threading.Event(), threading.Event()

    class SlowLib:
        def __getattr__(self, name: str) -> Any:
            return getattr(_native.lib, name)

        def s3dlio_reader_read(self, *arguments: Any) -> int:
            inside.set()
            go_on.wait(10)
            return -errno.EIO if freed.is_set() else _native.lib.s3dlio_reader_read(*arguments)

    def free(handle: Any) -> None:
        freed.set()
        _native.lib.s3dlio_reader_free_at(handle)

    monkeypatch.setattr(file, "lib", SlowLib())
    monkeypatch.setattr(file, "new_handle", lambda kind: _native.ffi.gc(_native.ffi.new(f"struct {kind} **"), free))
    uri = parse_uri(f"file://{tmp_path}/a")
    s3dlio.put(str(uri), b"whole")
    source = store_for(uri).open(uri)
    room = bytearray(5)
    with ThreadPoolExecutor(1) as pool:
        count = pool.submit(source.readinto, 0, _native.pointer(room, writable=True))
        assert inside.wait(10)
        source.close()
        go_on.set()
        assert count.result(10) == 5
    assert room == b"whole"
    assert freed.wait(10)
    with pytest.raises(s3dlio.ClosedError):
        source.readinto(0, _native.pointer(room, writable=True))
