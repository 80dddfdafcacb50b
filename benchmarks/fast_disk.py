"""A disk in memory, for what a real one would hide: ext4 on a block device of zram, which needs root.

zram keeps a page that is one word over and over as that word alone, so that `words` cost it a look through them and no
memory.  The loop device in front has that done by a thread of the kernel, as a real disk works beside whoever writes;
zram by itself does it in the writer's thread.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from race import GIB, Unavailable

PAGE_NBYTES = 4096
ZRAM = Path("/sys/class/zram-control")


def words(nbytes: int) -> bytes:
    """Pages of one word each; no two are alike."""
    return b"".join((page + 1).to_bytes(8, "little") * (PAGE_NBYTES // 8) for page in range(nbytes // PAGE_NBYTES))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def fast_disk(folder: Path, nbytes: int = 8 * GIB) -> Iterator[None]:
    """It is mounted at ``folder``, which must be empty.  Raises Unavailable."""
    with ExitStack() as undo:
        try:
            number = (ZRAM / "hot_add").read_text().strip()
            undo.callback(lambda: (ZRAM / "hot_remove").write_text(number))
            (Path("/sys/block") / f"zram{number}" / "disksize").write_text(str(nbytes))
            device = run("losetup", "--find", "--show", "--direct-io=on", f"/dev/zram{number}")
            undo.callback(lambda: run("losetup", "--detach", device))
            # All is written now, and nothing later in a thread of the kernel.
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
            run("mount", "-o", "noatime", device, str(folder))
            undo.callback(lambda: run("umount", str(folder)))
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"no disk in memory: {getattr(error, 'stderr', '') or error}") from error
        yield
