"""The package as others get it: the wheel, in an empty environment and for programs that link the library in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import harness
import pytest
from building import ROOT, check_stream, copy_source, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes."""
    folder = tmp_path_factory.mktemp("wheel")
    (source / ".venv").symlink_to(Path(sys.prefix))
    run(source / "scripts/wheel", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    return folder


def test_wheel_is_one_for_all_versions_of_python_and_old_systems(wheel: Path) -> None:
    assert re.fullmatch(r"s3dlio_cffi-[0-9.]+-cp311-abi3-manylinux_2_\d+_\w+\.whl", wheel.name)
    report = json.loads(run(sys.executable, "-m", "abi3audit", "--strict", "--report", wheel))
    (modules,) = [spec["wheel"] for spec in report["specs"].values()]
    assert {"_buffers.abi3.so", "_libs3dlio.abi3.so"} <= {module["name"] for module in modules}
    for module in modules:
        assert module["result"]["is_abi3"]
        assert module["result"]["is_abi3_baseline_compatible"]
        assert module["result"]["non_abi3_symbols"] == []


def test_wheel_carries_the_library_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    for pattern in (
        r"s3dlio/_libs3dlio\.abi3\.so",
        r"s3dlio/lib/libs3dlio\.so\.0",
        r"s3dlio/include/s3dlio/s3dlio\.h",
        r"s3dlio/lib/cmake/s3dlio/s3dlio-config\.cmake",
        r"s3dlio/py\.typed",
        r"s3dlio_cffi\.libs/libzstd-\w+\.so[0-9.]*",
        r"s3dlio_cffi\.libs/liburing-\w+\.so[0-9.]*",
        r".*\.dist-info/licenses/LICENSES/zstd\.txt",
        r".*\.dist-info/licenses/LICENSES/liburing\.txt",
    ):
        assert len([name for name in names if re.fullmatch(pattern, name)]) == 1, pattern
    expected = (
        r"s3dlio/.*\.(py|pyi|so|typed)|s3dlio/lib/libs3dlio\.so\.0|s3dlio/lib/cmake/s3dlio/.*\.cmake"
        r"|s3dlio/include/s3dlio/\w+\.h|s3dlio_cffi\.libs/lib(zstd|uring)-.*|.*\.dist-info/.*"
    )
    assert [name for name in names if not re.fullmatch(expected, name)] == []


def test_wheel_works_in_an_empty_environment_without_a_compiler(empty_environment: Path, tmp_path: Path) -> None:
    code = """
import s3dlio, sys
with s3dlio.open_writer(sys.argv[1], compression="zstd") as writer:
    writer.write_chunk(b"hello world")
assert s3dlio.open_reader(writer.uri, decompress=True).read() == b"hello world"
print(writer.checksum(), s3dlio.__file__)
for line in open("/proc/self/maps"):
    if "libzstd" in line or "liburing" in line or "libs3dlio" in line:
        print(line.split()[-1])
"""
    python = empty_environment / "bin/python"
    url = (tmp_path / "a").as_uri()
    printed = run(python, "-W", "error::ResourceWarning", "-c", code, url, cwd=tmp_path, PATH="/nowhere").split()
    assert printed[0] == "crc32c:c99465aa"
    assert {"libs3dlio", "libzstd", "liburing"} == {
        re.match("_?([a-z0-9]+)", Path(name).name)[1] for name in printed[2:]
    }
    assert all(name.startswith(str(empty_environment)) for name in printed[1:])


def test_tests_of_files_pass_on_the_wheel(empty_environment: Path, tmp_path: Path) -> None:
    python = Path(shutil.copytree(empty_environment, tmp_path / "venv", symlinks=True)) / "bin/python"
    tools = ["pytest", "pytest-timeout", "hypothesis", "numpy"]
    run(python, "-m", "pip", "install", "--quiet", *tools)
    tests = [str(ROOT / "tests" / name) for name in ("test_file.py", "test_stage.py")]
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--config-file={ROOT}/pyproject.toml"]
    printed = run(python, "-m", "pytest", *options, *tests, cwd=tmp_path, PATH="/usr/bin:/bin")
    assert re.search(r"\b\d\d+ passed", printed), printed


def test_c_program_links_the_library_in_the_wheel(empty_environment: Path, tmp_path: Path) -> None:
    python = empty_environment / "bin/python"
    flags = run(python, "-m", "s3dlio.config", "--cflags", "--libs", cwd=tmp_path).split()
    run("cc", ROOT / "examples/c/stream.c", "-o", tmp_path / "stream", *flags)
    check_stream(tmp_path / "stream", tmp_path)
    linked = re.findall(r"=> (\S+)", run("ldd", tmp_path / "stream"))
    loaded = run(python, "-c", "import s3dlio; print(open('/proc/self/maps').read())", cwd=tmp_path)
    (library,) = [name for name in linked if "libs3dlio" in name]
    assert library in loaded


def test_cmake_finds_the_library_in_the_wheel(empty_environment: Path, tmp_path: Path) -> None:
    harness.need_tools("c++")
    folder = run(empty_environment / "bin/python", "-m", "s3dlio.config", "--cmakedir", cwd=tmp_path).strip()
    build = ["cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path / "build", f"-Ds3dlio_DIR={folder}"]
    run(*build)
    run("cmake", "--build", tmp_path / "build")
    (tmp_path / "from").write_bytes(b"hello world")
    assert run(tmp_path / "build/copy", tmp_path / "from", tmp_path / "to") == "crc32c:c99465aa 11 bytes\n"
    static = subprocess.run([*build, "-DLINK_STATIC=ON"], capture_output=True, text=True, timeout=60)
    assert "there is no static library here" in static.stderr
    assert static.returncode != 0


def test_config_without_development_files_says_so(empty_environment: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(empty_environment, tmp_path / "venv", symlinks=True))
    (package,) = copy.glob("lib/python*/site-packages/s3dlio")
    shutil.rmtree(package / "include")
    command = [copy / "bin/python", "-m", "s3dlio.config", "--cflags"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{package}/include is missing" in done.stderr


def test_package_built_against_an_installed_library_carries_none(source: Path, prefix: Path, tmp_path: Path) -> None:
    options = ["--no-deps", "--no-build-isolation", f"--config-settings=build-dir={tmp_path}/build"]
    system = "--config-settings=cmake.define.S3DLIO_USE_SYSTEM=ON"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        *options,
        system,
        "--target",
        tmp_path / "site",
        source,
    ]
    run(*install, CMAKE_PREFIX_PATH=str(prefix))
    assert not list((tmp_path / "site").rglob("*.so.*"))
    assert not (tmp_path / "site/s3dlio/include").exists()
    code = "import s3dlio; print(s3dlio.__file__); print(open('/proc/self/maps').read())"
    # -S keeps the installation of this project away that the tests run on.
    paths = f"{tmp_path}/site:{sysconfig.get_path('purelib')}"
    printed = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=paths)
    assert printed.startswith(f"{tmp_path}/site/s3dlio/__init__.py\n")
    assert f" {prefix}/lib/libs3dlio.so.0" in printed
    flags = run(sys.executable, "-S", "-m", "s3dlio.config", "--cflags", "--libs", cwd=tmp_path, PYTHONPATH=paths)
    assert flags == f"-I{prefix}/include -L{prefix}/lib -Wl,-rpath,{prefix}/lib -l:libs3dlio.so.0\n"
