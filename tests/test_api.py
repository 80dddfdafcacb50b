"""What `import s3dlio` gives, and what it costs."""

from __future__ import annotations

import inspect
import logging
import re
import resource
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

import s3dlio
from s3dlio import checkpoint

ROOT = Path(__file__).parent.parent


def test_all_lists_the_public_names_in_order() -> None:
    public = {name for name, value in vars(s3dlio).items() if not name.startswith("_") and not inspect.ismodule(value)}
    others = {"__version__", "aio", "configure_azure", "configure_s3", *checkpoint.__all__}
    assert set(s3dlio.__all__) == public | others
    assert checkpoint.__all__ == sorted(checkpoint.__all__)
    assert s3dlio.__all__ == sorted(s3dlio.__all__)


def test_aio_has_the_operations_with_the_same_parameters() -> None:
    assert s3dlio.aio.__all__ == sorted(s3dlio.aio.__all__)
    operations = {name for name in s3dlio.__all__ if inspect.isfunction(getattr(s3dlio, name)) and name.islower()}
    others = {"crc32c", "crc32c_combine", "init_logging", "open_reader", "open_writer", "version"}
    others |= {name for name in operations if name.startswith("configure_")} | set(checkpoint.__all__)
    makers = {name for name in operations if name.startswith("create_") and name.endswith("_writer")}
    assert set(s3dlio.aio.__all__) == operations - others - makers
    for name in s3dlio.aio.__all__:
        there, here = inspect.signature(getattr(s3dlio, name)), inspect.signature(getattr(s3dlio.aio, name))
        taken = [str(each).replace(" | AsyncIterable[tuple[str, Buffer]]", "") for each in here.parameters.values()]
        assert taken == [str(each) for each in there.parameters.values()]
        assert getattr(s3dlio.aio, name).__doc__, name


def test_names_of_the_reference_are_there() -> None:
    assert s3dlio.PyObjectWriter is s3dlio.ObjectWriter
    assert s3dlio.PyWriterOptions is s3dlio.WriterOptions
    for name in ("write_chunk", "write_owned_bytes", "finalize", "bytes_written", "compressed_bytes", "checksum"):
        assert callable(getattr(s3dlio.PyObjectWriter, name))
    for function in (
        s3dlio.create_filesystem_writer,
        s3dlio.create_direct_filesystem_writer,
        s3dlio.create_s3_writer,
        s3dlio.create_azure_writer,
    ):
        assert list(inspect.signature(function).parameters) == ["uri", "options", "settings"]


def test_every_public_name_is_documented_and_annotated() -> None:
    for name in s3dlio.__all__:
        value = getattr(s3dlio, name)
        if not callable(value):
            continue
        assert inspect.getdoc(value), name
        members = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else [("", value)]
        for member, function in members:
            if member.startswith("_"):
                continue
            assert function.__doc__, f"{name}.{member}"
            # Those of a compiled function stand in the stub file.
            assert "return" in getattr(function, "__annotations__", ["return"]), f"{name}.{member}"


def test_version_is_that_of_the_header_and_the_package() -> None:
    header = (ROOT / "csrc/include/s3dlio/version.h").read_text()
    numbers = re.findall(r"#define S3DLIO_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert s3dlio.__version__ == s3dlio.version() == ".".join(numbers)
    from importlib.metadata import version

    assert version("s3dlio-cffi") == s3dlio.__version__


def test_package_says_that_it_is_typed() -> None:
    assert (Path(s3dlio.__file__).parent / "py.typed").exists()
    assert typing.get_type_hints(s3dlio.stat)["return"] is s3dlio.ObjectStat


def test_import_loads_nothing_heavy(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python("import s3dlio, sys; print(*sys.modules)")
    heavy = {"awscrt", "azure", "requests", "numpy", "asyncio", "concurrent.futures", "ctypes", "ssl", "http"}
    assert heavy.isdisjoint(done.stdout.split())


def test_import_takes_less_than_60_ms_over_an_empty_interpreter() -> None:
    def seconds(code: str) -> float:
        """Processor time of the interpreter, which other work on the machine hardly changes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds("import s3dlio")
    assert min(seconds("import s3dlio") - seconds("pass") for _ in range(7)) < 0.060


@pytest.mark.parametrize("level", ["error", "warn", "info", "debug", "trace"])
def test_init_logging_takes_the_levels_of_the_reference(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("s3dlio")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    s3dlio.init_logging(level)
    s3dlio.init_logging(level)
    assert len(logger.handlers) == 1
    expected = {"error": 40, "warn": 30, "info": 20, "debug": 10, "trace": 5}
    assert logger.level == expected[level]


@pytest.mark.parametrize("level", ["DEBUG", "verbose", "", None, 10])
def test_init_logging_refuses_other_levels(level: str) -> None:
    with pytest.raises(RuntimeError, match="trace"):
        s3dlio.init_logging(level)
