"""The README is what a newcomer tries first, so it is run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_is_short_and_names_both_commands() -> None:
    assert len(README.splitlines()) <= 80
    assert "make demo" in README
    assert "make test" in README


def test_example_of_the_readme_stands_at_its_top_and_runs(
    run_python: Callable[..., subprocess.CompletedProcess[str]], disk_path: Path
) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    assert README[: example.end()].count("\n") <= 40
    done = run_python(example[1].replace("/tmp/s3dlio", str(disk_path)))
    assert "crc32c:" in done.stdout
    assert "direct=True" in done.stdout
    assert f"file://{disk_path}/zeros.bin.zst" in done.stdout


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_examples_of_checkpoints_run(
    run_python: Callable[..., subprocess.CompletedProcess[str]], disk_path: Path
) -> None:
    document = (ROOT / "docs/checkpoint.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    done = run_python("\n".join(examples).replace("/tmp/checkpoints", str(disk_path)))
    assert done.stdout.splitlines() == [
        "b'weights and more'",
        "100 1 demo 16 True",
        "b'weights of one rank' b'weights'",
    ]
    # The manifest that is shown has what one has.
    shown = re.search(r"```json\n(.*?)```", document, re.DOTALL)
    assert shown
    (path,) = disk_path.glob("manifests/ckpt-100-*.json")
    expected, found = json.loads(shown[1]), json.loads(path.read_text())
    assert list(found) == list(expected)
    assert [*found["shards"][0], "pieces"] == list(expected["shards"][0])
