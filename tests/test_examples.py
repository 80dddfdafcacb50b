"""The examples of checkpoints, which assert that what they load is what they saved, are run on two stores."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import harness
import pytest

import s3dlio

EXAMPLES = Path(__file__).parent.parent / "examples"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/run" if request.param == "file" else "memory://examples/run"


def run_example(run_python: Run, name: str, *arguments: str, **environment: str) -> list[str]:
    """What it prints."""
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    return run_python(code, str(EXAMPLES / name), *arguments, **environment).stdout.splitlines()


def test_torch_example_loads_what_it_saved(run_python: Run, uri: str) -> None:
    if find_spec("torch") is None:
        harness.cannot("torch is not installed")
    saved, loaded, saved_one, loaded_one, steps = run_example(run_python, "checkpoint_torch.py", uri)
    assert "of 2 ranks: manifests/ckpt-100-" in saved
    assert loaded == "loaded step 100 of 2 ranks: equal, {'loss': 0.25}"
    assert "of one rank: manifests/ckpt-200-" in saved_one
    assert loaded_one == "loaded the newest: equal"
    assert steps.endswith("[100, 200]")
    if uri.startswith("file:"):
        infos = s3dlio.CheckpointStore(uri).list_checkpoints()
        assert [(info.step, info.world_size) for info in infos] == [(100, 2), (200, 1)]


def test_numpy_example_loads_what_it_saved(run_python: Run, uri: str) -> None:
    one, several, npy = run_example(run_python, "checkpoint_numpy.py", uri)
    assert one == "step 1, one array: 1228800 bytes, equal, {'shape': [512, 300], 'dtype': 'float64'}"
    assert several == "step 2, 3 arrays: 1244800 bytes, equal"
    assert npy == "step 3, .npy: 1228928 bytes, equal, shape (300, 512)"


def test_numpy_example_without_a_uri_leaves_nothing_behind(run_python: Run, tmp_path: Path) -> None:
    assert len(run_example(run_python, "checkpoint_numpy.py", TMPDIR=str(tmp_path))) == 3
    assert list(tmp_path.iterdir()) == []
