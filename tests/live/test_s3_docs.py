"""The example for S3 is run, on a real server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import servers

import s3dlio

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/s3.md").read_text()


def test_example_runs(
    run_python: Callable[..., subprocess.CompletedProcess[str]], s3: str, seaweed: servers.Server, tmp_path: Path
) -> None:
    example = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert example
    code = example[1].replace("/tmp/s3dlio", str(tmp_path)).replace("http://127.0.0.1:8333", seaweed.url)
    code = code.replace('"AKIA..."', repr(servers.ACCESS_KEY)).replace('"..."', repr(servers.SECRET_KEY))
    run_python(code)
    assert (tmp_path / "42/model.bin").stat().st_size == 64_000_000
    assert len(list((tmp_path / "42/samples").iterdir())) == 100
    assert s3dlio.list("s3://runs") == []
    s3dlio.delete_bucket("s3://runs")
