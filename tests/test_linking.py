"""Programs of others, linked to the library as it is installed: those of examples/, over real input."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import crc32c as oracle
import harness
import pytest
from building import ROOT, check_stream, copy_source, paths_to, run, version, write_sample

EXAMPLES = ROOT / "examples"
STRICT = ["-pedantic", "-Wall", "-Wextra", "-Werror"]


def pkg_config(prefix: Path, *options: str) -> list[str]:
    return run("pkg-config", *options, "s3dlio", **paths_to(prefix)).split()


def needed(program: Path) -> list[str]:
    return re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", program))


def test_installed_tree_is_complete(prefix: Path) -> None:
    abi = re.search(r"ABI_VERSION (\d+)", (ROOT / "csrc/include/s3dlio/version.h").read_text())[1]
    headers = {path.name for path in (ROOT / "csrc/include/s3dlio").iterdir()}
    assert {path.name for path in (prefix / "include/s3dlio").iterdir()} == headers
    assert (prefix / "lib/libs3dlio.so").readlink() == Path(f"libs3dlio.so.{abi}")
    assert f"[libs3dlio.so.{abi}]" in run("readelf", "-d", prefix / "lib/libs3dlio.so")
    assert pkg_config(prefix, "--modversion") == [version()]
    assert {"libzstd", "liburing"} <= set(pkg_config(prefix, "--print-requires-private"))
    for file in (prefix / "lib").rglob("*"):
        if file.suffix in (".pc", ".cmake"):
            assert str(prefix.parent) not in file.read_text(), f"{file} names the place that it was installed to"


# As strict as compilers are, so that the headers are for everybody.
@pytest.mark.parametrize("compiler", ["cc -std=c99", "c++ -x c++ -std=c++11"])
def test_c_example_compiled_strictly_streams_to_a_file(compiler: str, prefix: Path, tmp_path: Path) -> None:
    harness.need_tools(compiler.split()[0])
    flags = pkg_config(prefix, "--cflags", "--libs")
    run(*compiler.split(), *STRICT, EXAMPLES / "c/stream.c", "-o", tmp_path / "stream", *flags)
    check_stream(tmp_path / "stream", tmp_path, **paths_to(prefix))
    assert "libs3dlio.so.0" in needed(tmp_path / "stream")


def test_c_example_linked_without_any_shared_library_streams_to_a_file(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.c").write_text("int main(void) { return 0; }")
    probe = ["cc", "-static", tmp_path / "probe.c", "-o", tmp_path / "probe", "-lzstd", "-luring"]
    if subprocess.run(probe, capture_output=True, timeout=60).returncode != 0:
        harness.cannot("libc, libzstd or liburing is not here as a static library")
    flags = pkg_config(prefix, "--static", "--cflags", "--libs")
    run("cc", "-static", EXAMPLES / "c/stream.c", "-o", tmp_path / "stream", *flags)
    check_stream(tmp_path / "stream", tmp_path)
    assert needed(tmp_path / "stream") == []


@pytest.mark.parametrize("static", ["OFF", "ON"])
def test_cpp_example_found_by_cmake_copies_a_file(static: str, prefix: Path, tmp_path: Path) -> None:
    harness.need_tools("c++")
    build = tmp_path / "build"
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DLINK_STATIC={static}", f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}"]
    run("cmake", "-S", EXAMPLES / "cpp", "-B", build, *options)
    run("cmake", "--build", build)
    data = write_sample(tmp_path / "from")
    printed = run(build / "copy", tmp_path / "from", tmp_path / "to")
    assert printed == f"crc32c:{oracle.crc32c(data):08x} {len(data)} bytes\n"
    assert (tmp_path / "to").read_bytes() == data
    assert ("libs3dlio.so.0" in needed(build / "copy")) == (static == "OFF")

    missing = subprocess.run([build / "copy", tmp_path / "none", tmp_path / "other"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert missing.stderr == f"copy: {tmp_path}/none: No such file or directory\n"
    assert not (tmp_path / "other").exists()


def test_cmake_without_what_a_static_link_needs_says_so(prefix: Path, tmp_path: Path) -> None:
    harness.need_tools("c++")
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", "-DLINK_STATIC=ON", "-DPKG_CONFIG_EXECUTABLE=/bin/false"]
    done = subprocess.run(
        ["cmake", "-S", EXAMPLES / "cpp", "-B", tmp_path / "build", *options], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "s3dlio::static needs pkg-config and the development files" in " ".join(done.stderr.split())


def test_rust_example_unpacks_what_the_c_example_stored(prefix: Path, tmp_path: Path) -> None:
    harness.need_tools("cargo")
    paths = paths_to(prefix)
    flags = pkg_config(prefix, "--cflags", "--libs")
    run("cc", EXAMPLES / "c/stream.c", "-o", tmp_path / "stream", *flags)
    build = paths | {"CARGO_TARGET_DIR": str(tmp_path / "target")}
    run("cargo", "build", "--offline", "--locked", cwd=EXAMPLES / "rust", **build)
    data = write_sample(tmp_path / "input")
    with (tmp_path / "input").open("rb") as file:
        run(tmp_path / "stream", tmp_path / "stored", stdin=file, **paths)
    unpack = tmp_path / "target/debug/unpack"
    with (tmp_path / "stored").open("rb") as file:
        printed = run(unpack, tmp_path / "output", stdin=file, **paths)
    assert printed == f"crc32c:{oracle.crc32c(data):08x} {len(data)} bytes\n"
    assert (tmp_path / "output").read_bytes() == data

    cut = subprocess.run(
        ["sh", "-c", f"head -c 100000 {tmp_path}/stored | LD_LIBRARY_PATH={prefix}/lib {unpack} {tmp_path}/cut"],
        capture_output=True,
        text=True,
    )
    assert cut.returncode == 1
    assert "the data ends too early" in cut.stderr
    assert not (tmp_path / "cut").exists()


def test_ctypes_example_tells_checksums(prefix: Path, tmp_path: Path) -> None:
    data = write_sample(tmp_path / "input")
    (tmp_path / "empty").touch()
    program = EXAMPLES / "ctypes/checksum.py"
    printed = run(sys.executable, "-I", program, tmp_path / "input", tmp_path / "empty", **paths_to(prefix))
    assert printed == (
        f"crc32c:{oracle.crc32c(data):08x} {len(data)} bytes {tmp_path}/input\n"
        f"crc32c:00000000 0 bytes {tmp_path}/empty\n"
    )


def test_quick_start_of_the_document_runs(prefix: Path, tmp_path: Path) -> None:
    document = (ROOT / "docs/c-api.md").read_text()
    program, commands = (re.search(rf"```{language}\n(.*?)```", document, re.DOTALL)[1] for language in ("c", "sh"))
    (tmp_path / "hello.c").write_text(program)
    printed = run("sh", "-e", "-c", commands, cwd=tmp_path, **paths_to(prefix))
    assert printed == "crc32c:c99465aa\nhello world"


def test_library_without_io_uring_asks_for_no_liburing(tmp_path: Path) -> None:
    # Of one folder, where the first answer must not be kept.
    for uring in ("ON", "OFF"):
        run("cmake", "-S", ROOT, "-B", tmp_path / "build", "-DCMAKE_INSTALL_LIBDIR=lib", f"-DS3DLIO_URING={uring}")
    run("cmake", "--build", tmp_path / "build", "-j2")
    prefix = tmp_path / "prefix"
    run("cmake", "--install", tmp_path / "build", "--prefix", prefix)
    assert pkg_config(prefix, "--print-requires-private") == ["libzstd", ">=", "1.4.0"]
    assert not any("uring" in name for name in needed(prefix / "lib/libs3dlio.so"))
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", "-DLINK_STATIC=ON"]
    harness.need_tools("c++")
    run("cmake", "-S", EXAMPLES / "cpp", "-B", tmp_path / "cpp", *options)
    run("cmake", "--build", tmp_path / "cpp")
    data = write_sample(tmp_path / "from")
    run(tmp_path / "cpp/copy", tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data


PARENT = """
cmake_minimum_required(VERSION 3.20)
project(parent LANGUAGES C)
add_subdirectory({root} s3dlio)
add_executable(shared {stream})
target_link_libraries(shared PRIVATE s3dlio::s3dlio)
add_executable(static {stream})
target_link_libraries(static PRIVATE s3dlio::static)
install(TARGETS shared static)
"""


def test_project_that_includes_this_one_links_both_libraries(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PARENT.format(root=ROOT, stream=EXAMPLES / "c/stream.c"))
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", build, "-j2")
    check_stream(build / "shared", tmp_path)
    check_stream(build / "static", tmp_path)
    assert "libs3dlio.so.0" in needed(build / "shared")
    assert "libs3dlio.so.0" not in needed(build / "static")
    run("cmake", "--install", build, "--prefix", tmp_path / "prefix")
    installed = [path.name for path in (tmp_path / "prefix").rglob("*") if path.is_file()]
    assert sorted(installed) == ["shared", "static"]


def build_reference(source: Path, build: Path) -> subprocess.CompletedProcess[str]:
    harness.need_tools("doxygen")
    run("cmake", "-S", source, "-B", build, "-DS3DLIO_DOCS=ON")
    command = ["cmake", "--build", build, "--target", "reference"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_reference_describes_every_call_without_a_warning(tmp_path: Path) -> None:
    done = build_reference(ROOT, tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    run("cmake", "--install", tmp_path / "build", "--component", "docs", "--prefix", tmp_path / "prefix")
    (index,) = (tmp_path / "prefix").rglob("html/globals_func.html")
    described = set(re.findall(r"s3dlio_\w+(?=\(\))", index.read_text()))
    declared = set()
    for header in (ROOT / "csrc/include/s3dlio").iterdir():
        declared |= set(re.findall(r"^S3DLIO_API[^;]*?\b(s3dlio_\w+)\(", header.read_text(), re.MULTILINE))
    assert len(declared) > 30
    assert described == declared


def test_reference_refuses_a_call_without_a_comment(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    header = source / "csrc/include/s3dlio/version.h"
    header.write_text(header.read_text().replace("/* cffi: end", "S3DLIO_API int\ns3dlio_planted(void);\n/* cffi: end"))
    done = build_reference(source, tmp_path / "build")
    assert done.returncode != 0
    assert "s3dlio_planted" in done.stderr
