"""Checkpoints at the end of a process and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import s3dlio

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
