"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest
import servers
from hypothesis import settings

import s3dlio

# How long an example takes says nothing on a busy machine.
settings.register_profile("s3dlio", deadline=None)
settings.load_profile("s3dlio")


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that takes O_DIRECT; the temporary one, or one in the project."""
    project = Path(__file__).parent.parent
    for parent in (tmp_path, project):
        with tempfile.TemporaryDirectory(dir=parent, prefix="disk-") as folder:
            try:
                os.close(os.open(f"{folder}/probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
            except OSError:
                continue
            if _file_system(folder) not in ("tmpfs", "ramfs"):
                os.unlink(f"{folder}/probe")
                yield Path(folder)
                return
    harness.cannot("neither the temporary folder nor the project is on a file system with O_DIRECT")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder on tmpfs."""
    if _file_system("/dev/shm") != "tmpfs":
        harness.cannot("/dev/shm is no tmpfs")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def _file_system(path: str) -> str:
    return subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in a process of its own, so that it may fork, forbid or kill what it likes."""

    def run(code: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | environment,
        )
        assert not check or done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that anyone may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def run_as_nobody(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_python`, by a user who owns nothing; ``s3dlio`` and ``sys`` are there."""
    harness.need_root()
    begin = """
import os, sys
import s3dlio
for uri in ("file:///", "memory://x/y"):  # while the modules can still be read
    s3dlio.exists(uri)
os.setresuid(65534, 65534, 65534)
"""
    return lambda code, *arguments: run_python(begin + code, *arguments)


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C library is installed as others install it."""
    from building import install_library  # which needs more than the tests of an installed package have

    return install_library(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def seaweed() -> Iterator[servers.Server]:
    server = servers.start_seaweed()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.Server]:
    server = servers.start_moto()
    yield server
    server.stop()


@pytest.fixture
def s3(seaweed: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3://bucket`` of a real S3 server that checks signatures and checksums."""
    yield from _bucket(seaweed, monkeypatch)


@pytest.fixture
def moto(moto_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same of a second implementation, which checks neither."""
    yield from _bucket(moto_server, monkeypatch)


def _bucket(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in servers.environment(server.url).items():
        monkeypatch.setenv(name, value)
    s3dlio.create_bucket("s3://tests")
    yield "s3://tests"
    servers.disconnect()


@pytest.fixture(scope="session")
def azurite() -> Iterator[servers.Server]:
    server = servers.start_azurite()
    yield server
    server.stop()


@pytest.fixture
def azure(azurite: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``az://account/container`` of a real server."""
    for name, value in servers.azure_environment(azurite.url).items():
        monkeypatch.setenv(name, value)
    uri = f"az://{servers.ACCOUNT}/tests"
    s3dlio.create_bucket(uri)
    yield uri
    servers.disconnect_azure()


@pytest.fixture
def container(azure: str) -> Iterator[str]:
    """``az://account/container`` with nothing in it."""
    uri = f"az://{servers.ACCOUNT}/live-{random.randrange(10**9)}"
    s3dlio.create_bucket(uri)
    yield uri
    s3dlio.configure_azure(account_key=servers.ACCOUNT_KEY, sas_token=None, connection_string=None, endpoint_url=None)
    s3dlio.delete(uri, recursive=True)
    s3dlio.delete_bucket(uri)


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes the one line that a harness has to say, such as ``kill9: 1000 kills, 0 torn, seed 7``."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write("".join(f"{line}\n" for line in figures))


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    """Every test gives back what it opens."""
    before = _descriptors()
    yield
    gc.collect()
    gc.freeze()  # what lives longer than a test need not be looked through after each
    leaked = {number: name for number, name in _descriptors().items() if before.get(number) != name}
    assert not leaked, f"descriptors left open: {leaked}"


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except OSError:
            continue
    # The second is what the TLS library of awscrt opens once and for all.
    return {number: name for number, name in found.items() if "/proc/" not in name and name != "/dev/urandom"}
