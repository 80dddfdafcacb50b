"""What the tests here put under faults: a program that writes files, and a client of S3."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from harness import need_tools
from proxy import Proxy
from s3_work import PART, RANGE

import s3dlio
from s3dlio import _transfer
from s3dlio._stores import s3, s3_tasks

ROOT = Path(__file__).parents[2]

Through = Callable[..., None]


@pytest.fixture
def proxy(seaweed: servers.Server) -> Iterator[Proxy]:
    with Proxy(seaweed.url) as between:
        yield between
        servers.disconnect()


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Through:
    """``through(proxy)`` makes it the way to S3, with little patience; ``through(None)`` is the straight way."""
    monkeypatch.setattr(s3, "WHOLE_NBYTES", PART)
    monkeypatch.setattr(s3_tasks, "RANGE", RANGE)
    monkeypatch.setattr(_transfer, "_PIECE", RANGE)

    def go(proxy: Proxy | None, stall_timeout: float | None = None) -> None:
        chosen = {"retries": 3, "backoff": 0.02, "operation_timeout": 20, "stall_timeout": stall_timeout}
        if proxy is None:
            chosen = dict.fromkeys(chosen)
        s3dlio.configure_s3(endpoint_url=proxy and proxy.url, **chosen)

    return go


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
