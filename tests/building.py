"""What the tests share that build and install the project as others do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

import crc32c as oracle
import zstandard

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path | None = None, stdin: IO[bytes] | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, stdin=stdin, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def version() -> str:
    header = (ROOT / "csrc/include/s3dlio/version.h").read_text()
    return ".".join(re.findall(r"#define S3DLIO_VERSION_\w+ (\d+)", header))


def copy_source(folder: Path) -> Path:
    """A copy of the project without anything that was built in it."""
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
    return Path(shutil.copytree(ROOT, folder / "project", ignore=ignore))


def install_library(folder: Path) -> Path:
    """The installed tree, moved to another place than it was installed to."""
    run("cmake", "-S", ROOT, "-B", folder / "build", "-DCMAKE_INSTALL_LIBDIR=lib", "-DS3DLIO_WERROR=ON")
    run("cmake", "--build", folder / "build", "-j2")
    run("cmake", "--install", folder / "build", "--prefix", folder / "first")
    return (folder / "first").rename(folder / "prefix")


def paths_to(prefix: Path) -> dict[str, str]:
    """The environment in which compilers and programs find what is installed there."""
    return {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig"), "LD_LIBRARY_PATH": str(prefix / "lib")}


@cache
def _sample() -> bytes:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(Path(os.__file__).parent, filter=_only_sources)
        file.seek(0)
        return file.read()


def _only_sources(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return member if member.name.endswith(".py") or (member.isdir() and "-packages" not in member.name) else None


def write_sample(path: Path) -> bytes:
    """Real input for the examples, of several blocks: Python's own library."""
    data = _sample()
    assert len(data) > 3 * (4 << 20)
    path.write_bytes(data)
    return data


def check_stream(program: Path, folder: Path, **environment: str) -> None:
    """The program of examples/c stores what comes in, compressed, and tells its checksum."""
    data = write_sample(folder / "input")
    with (folder / "input").open("rb") as file:
        printed = run(program, folder / "stored.zst", stdin=file, **environment)
    stored = (folder / "stored.zst").read_bytes()
    assert printed == f"crc32c:{oracle.crc32c(data):08x} {len(data)} bytes, {len(stored)} stored\n"
    assert zstandard.ZstdDecompressor().decompressobj().decompress(stored) == data
    (folder / "stored.zst").unlink()
