"""A child of fork(2) can use nothing that it inherits, is told so at once, ends well, and harms nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forker
import pytest
from harness import effort

ROWS = [(s, c, e) for s in ("file", "direct") for c in (None, "zstd") for e in ("uring", "threads")]


def run(*jobs: dict[str, Any]) -> Counter[str]:
    """Runs the program that forks, and returns what it counted."""
    defaults = {"engine": "", "scheme": "file", "compression": None, "writer": "ours", "deadline": 30}
    for job in jobs:
        Path(job["folder"]).mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-X", "dev", forker.__file__, json.dumps([defaults | job for job in jobs])],
        capture_output=True,
        text=True,
        timeout=effort(200, 2000),
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr
    return sum((Counter(result) for result in json.loads(done.stdout)), Counter())


@pytest.mark.timeout(effort(300, 3000))
@pytest.mark.parametrize("mode", ["between", "inside", "after"])
def test_forks_in_the_middle_of_writing_harm_nobody(disk_path: Path, mode: str, figure: Callable[[str], None]) -> None:
    forks = effort(len(forker.ENDINGS), 240)
    jobs = [
        {"mode": mode, "folder": f"{disk_path}/{n}", "scheme": s, "compression": c, "engine": e, "forks": forks}
        for n, (s, c, e) in enumerate(ROWS)
    ]
    total = run(*jobs)
    where = {"between": "between calls", "inside": "inside a call", "after": "children that live longer"}[mode]
    figure(f"fork, {where}: {total['forks']} forks, {total['hung']} hung, {total['harmed']} parents harmed")
    assert total["forks"] == forks * len(ROWS)
    assert (total["inside"] > total["forks"] / 4) == (mode == "inside")
    assert not total["hung"] + total["harmed"]
    for job in jobs:
        assert sorted(os.listdir(job["folder"])) == ["a.zst" if job["compression"] else "a", "b", "b.zst"]


def test_child_that_writes_through_a_plain_descriptor_is_seen_to_harm(disk_path: Path) -> None:
    """A planted fault."""
    assert run({"mode": "between", "folder": str(disk_path), "writer": "plain", "forks": 3})["harmed"] == 1


def test_child_that_waits_for_a_lock_of_the_parent_is_seen_to_hang(disk_path: Path) -> None:
    """A planted fault."""
    job = {"mode": "inside", "folder": str(disk_path), "writer": "locked", "forks": 3, "deadline": 0.5}
    assert run(job)["hung"] > 0
