"""The example for Azure is run, on a real server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import servers

import s3dlio

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/azure.md").read_text()


def test_example_runs(
    run_python: Callable[..., subprocess.CompletedProcess[str]], azure: str, azurite: servers.Server, tmp_path: Path
) -> None:
    example = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert example
    text = f"AccountName={servers.ACCOUNT};AccountKey={servers.ACCOUNT_KEY};BlobEndpoint={azurite.url}"
    code = example[1].replace("/tmp/s3dlio", str(tmp_path)).replace("UseDevelopmentStorage=true", text)
    assert text in code
    run_python(code)
    assert (tmp_path / "42/model.bin").stat().st_size == 64_000_000
    assert len(list((tmp_path / "42/samples").iterdir())) == 100
    runs = f"az://{servers.ACCOUNT}/runs"
    assert s3dlio.list(runs) == []
    s3dlio.delete_bucket(runs)
