"""Programs of others, linked to the library as it is installed: those of examples/, over real input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from building import ROOT, check_stream, install_library, paths_to, run

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_library(tmp_path_factory.mktemp("installed"))


def flags(prefix: Path, *options: str) -> list[str]:
    return run("pkg-config", *options, "--cflags", "--libs", "s3dlio", **paths_to(prefix)).split()


# As strict as compilers are, so that the headers are for everybody.
@pytest.mark.parametrize("compiler", ["cc -std=c99", "c++ -x c++ -std=c++11"])
def test_c_example_compiled_strictly_streams_to_a_file(compiler: str, prefix: Path, tmp_path: Path) -> None:
    strict = ["-pedantic", "-Wall", "-Wextra", "-Werror"]
    source = EXAMPLES / "c/stream.c"
    run(*compiler.split(), *strict, source, "-o", tmp_path / "stream", *flags(prefix))
    check_stream(tmp_path / "stream", tmp_path, **paths_to(prefix))
    assert re.search(r"NEEDED.*\[libs3dlio\.so\.0\]", run("readelf", "-d", tmp_path / "stream"))
