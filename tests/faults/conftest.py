"""The program that the tests here run under faults."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import need_tools

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """driver.c with the library linked into it, so that nothing but it and the C library makes system calls."""
    need_tools("cmake", "cc", "pkg-config")
    build = ROOT / "build/faults"
    # A copy for these tests alone: long ones go on while the sources change.
    program = tmp_path_factory.mktemp("driver") / "driver"
    pkg_config = ["pkg-config", "--cflags", "--libs", "libzstd", "liburing"]
    packages = subprocess.run(pkg_config, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    warnings = ["-Wall", "-Wextra", "-Werror"]
    definitions = ["-D_GNU_SOURCE", "-DS3DLIO_STATIC", f"-I{ROOT}/csrc/include"]
    inputs = [ROOT / "tests/faults/driver.c", build / "csrc/libs3dlio.a"]
    for command in (
        ["cmake", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DS3DLIO_WERROR=ON"],
        ["cmake", "--build", build, "--target", "s3dlio_static", "--parallel", "2"],
        ["cc", "-O2", *warnings, *definitions, *inputs, "-o", program, *packages, "-pthread"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    return program
