"""The fuzz targets for a moment in every `make test`, and for five million executions in `make soak`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import harness
import pytest

ROOT = Path(__file__).parent.parent.parent
TARGETS = {file.stem.removeprefix("fuzz_") for file in (ROOT / "fuzz").glob("fuzz_*.c")}
SHORT, LONG = 600, 3 * 3600


def run_fuzz(figure: Callable[[str], None], argument: str) -> dict[str, str]:
    """Runs every target and returns what the script says of each."""
    harness.need_tools("clang", "cmake")
    done = subprocess.run(
        [ROOT / "scripts" / "fuzz", argument],
        capture_output=True,
        text=True,
        check=False,
        timeout=harness.effort(SHORT, LONG),
    )
    for line in done.stdout.splitlines():
        figure(line)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    said = dict(re.findall("^fuzz ([a-z0-9_]+): (.*)$", done.stdout, re.MULTILINE))
    assert said.keys() == TARGETS
    return said


@pytest.mark.timeout(harness.effort(SHORT, LONG) + 10)
def test_fuzz_target_when_run_finds_nothing(figure: Callable[[str], None]) -> None:
    said = run_fuzz(figure, "2")
    executions = 0
    for text in said.values():
        match = re.fullmatch("([0-9]+) executions, 0 findings", text)
        assert match, text
        executions += int(match[1])
    assert executions >= harness.effort(1000, 5_000_000)


@pytest.mark.timeout(harness.effort(SHORT, LONG) + 10)
def test_fuzz_target_when_a_fault_is_planted_finds_it(figure: Callable[[str], None]) -> None:
    for text in run_fuzz(figure, "planted").values():
        assert re.fullmatch("planted fault found after [0-9]+ executions", text), text
