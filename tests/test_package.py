"""The package as others get it: a wheel in an empty environment, and the library installed by CMake."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without anything that was built in it."""
    copy = tmp_path_factory.mktemp("source") / "project"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_is_one_for_all_versions_of_python(wheel: Path) -> None:
    assert re.fullmatch(r"s3dlio_cffi-[0-9.]+-cp311-abi3-linux_\w+\.whl", wheel.name)
    report = json.loads(run(sys.executable, "-m", "abi3audit", "--strict", "--report", wheel))
    (modules,) = [spec["wheel"] for spec in report["specs"].values()]
    assert sorted(module["name"] for module in modules) == ["_crc32c.abi3.so", "_libs3dlio.abi3.so"]
    for module in modules:
        assert module["result"]["is_abi3"]
        assert module["result"]["is_abi3_baseline_compatible"]
        assert module["result"]["non_abi3_symbols"] == []


def test_wheel_carries_the_library_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "s3dlio/_libs3dlio.abi3.so" in names
    assert "s3dlio/py.typed" in names
    unexpected = [name for name in names if not re.fullmatch(r"s3dlio/.*\.(py|pyi|so|typed)|.*\.dist-info/.*", name)]
    assert unexpected == []


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    code = """
import s3dlio, sys
with s3dlio.open_writer(sys.argv[1], compression="zstd") as writer:
    writer.write_chunk(b"hello world")
assert s3dlio.open_reader(writer.uri, decompress=True).read() == b"hello world"
print(writer.checksum(), s3dlio.__file__)
"""
    printed = run(python, "-W", "error::ResourceWarning", "-c", code, (tmp_path / "a").as_uri(), cwd=tmp_path)
    assert printed.startswith("crc32c:c99465aa ")
    assert str(tmp_path / "venv") in printed


CONSUMER = """
#include <s3dlio/s3dlio.h>
#include <stdio.h>

int
main(int argc, char **argv)
{
    struct s3dlio_writer *writer;
    struct s3dlio_writer_options options = {.struct_nbytes = sizeof options};
    int status = argc == 2 ? s3dlio_writer_open(&writer, argv[1], &options) : 1;

    if (status)
        return 1;
    status = s3dlio_writer_write(writer, "hello world", 11, NULL);
    if (!status)
        status = s3dlio_writer_close(writer);
    s3dlio_writer_free(writer);
    printf("%s %08x\\n", s3dlio_version(), (unsigned)s3dlio_crc32c(0, "hello world", 11));
    return status ? 2 : 0;
}
"""

CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES C)
find_package(s3dlio CONFIG REQUIRED)
add_executable(shared consumer.c)
target_link_libraries(shared s3dlio::s3dlio)
add_executable(static consumer.c)
target_link_libraries(static s3dlio::static)
"""


def test_installed_library_is_found_by_cmake_and_pkg_config(source: Path, tmp_path: Path) -> None:
    prefix, build, consumer = tmp_path / "prefix", tmp_path / "build", tmp_path / "consumer"
    run("cmake", "-S", source, "-B", build, "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--build", build, "-j2")
    run("cmake", "--install", build, "--prefix", prefix)
    consumer.mkdir()
    (consumer / "consumer.c").write_text(CONSUMER)
    (consumer / "CMakeLists.txt").write_text(CONSUMER_CMAKE)
    run("cmake", "-S", consumer, "-B", consumer / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", consumer / "build")
    paths = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig"), "LD_LIBRARY_PATH": str(prefix / "lib")}
    flags = run("pkg-config", "--cflags", "--libs", "s3dlio", **paths).split()
    run("cc", "consumer.c", "-o", "with-pkg-config", *flags, cwd=consumer)
    for program in ("build/shared", "build/static", "with-pkg-config"):
        written = tmp_path / "written"
        printed = run(consumer / program, written, **paths)
        assert printed == f"{run('pkg-config', '--modversion', 's3dlio', **paths).strip()} c99465aa\n"
        assert written.read_bytes() == b"hello world"
        written.unlink()
    assert (prefix / "lib/libs3dlio.so.0").is_symlink()
    headers = {path.name for path in (prefix / "include/s3dlio").iterdir()}
    assert headers == {path.name for path in (source / "csrc/include/s3dlio").iterdir()}
