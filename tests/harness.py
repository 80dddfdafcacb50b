"""What the tests that inject faults share: their length, their seed, and what they need of the machine.

S3DLIO_SOAK=1 in the environment asks for the long forms (`make soak`), S3DLIO_SEED=N repeats a run.  With CI=true a
test that cannot run fails, since there everything it needs is to be had.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

SOAK = os.environ.get("S3DLIO_SOAK", "") not in ("", "0")


def effort(short: int, long: int) -> int:
    """How often to do it: in every `make test`, and in `make soak`."""
    return long if SOAK else short


def new_seed() -> int:
    """A seed that the harness prints with its figure."""
    given = os.environ.get("S3DLIO_SEED")
    return int(given) if given else random.SystemRandom().randrange(2**32)


def cannot(reason: str) -> NoReturn:
    """Skips the test, or fails it where it must run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot run in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def need_root() -> None:
    if os.geteuid() != 0:
        cannot("only root may do this")


def need_tools(*names: str) -> None:
    """Programs that `scripts/setup tools` installs."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in names if not shutil.which(name, path=path)]
    if missing:
        cannot(f"not installed: {', '.join(missing)}")


def flags_of_open_files(folder: Path) -> list[int]:
    """The open(2) flags of this process's files in a folder, also of files without a name, as the kernel tells them."""
    flags = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith(str(folder)) or entry.is_dir():
                continue
            text = (Path("/proc/self/fdinfo") / entry.name).read_text()
        except OSError:
            continue
        flags.append(int(re.search(r"flags:\s+(\d+)", text)[1], 8))  # type: ignore[index]
    return flags
