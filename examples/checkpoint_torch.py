"""Checkpoints of a PyTorch model and its optimizer: of two ranks that save together, and of one.

Usage: checkpoint_torch.py [URI]   below which they are stored (default: a temporary folder)
"""

from __future__ import annotations

import io
import sys
import tempfile

import torch

import s3dlio

WORLD_SIZE = 2


class Training:
    """What one rank has to save."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(16, 64)).square().mean().backward()
        self.optimizer.step()

    def state(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, data: bytes) -> None:
        # BytesIO shares the memory of bytes, so nothing is copied before torch.load() does.
        state = torch.load(io.BytesIO(data), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def same(one: object, other: object) -> bool:
    """Whether two states are equal, to the last bit of each tensor."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def save_of_two_ranks(store: s3dlio.CheckpointStore, ranks: list[Training]) -> None:
    """In a training each rank is a process, and torch.distributed.gather_object() brings the records to one of them."""
    records = []
    for rank, training in enumerate(ranks):
        writer = store.writer(WORLD_SIZE, rank)
        with writer.get_distributed_shard_stream(100, 1, "torch") as stream:
            torch.save(training.state(), stream)  # straight into the store: no copy of it all, and no file between
        records.append(stream.finalize())
    key = store.writer(WORLD_SIZE, 0).finalize_distributed_checkpoint(100, 1, "torch", records, {"loss": 0.25})
    print(f"saved {sum(record['size'] for record in records)} bytes of {len(records)} ranks: {key}")


def load_of_two_ranks(store: s3dlio.CheckpointStore, ranks: list[Training]) -> None:
    reader = store.reader()
    manifest = reader.load_latest_manifest()
    assert manifest is not None
    for rank, training in enumerate(ranks):
        fresh = Training(seed=1000)
        assert not same(fresh.state(), training.state())
        fresh.restore(reader.read_shard_by_rank(manifest, rank))
        assert same(fresh.state(), training.state())
    print(f"loaded step {manifest['global_step']} of {len(ranks)} ranks: equal, {manifest['user_meta']}")


def save_and_load_of_one_rank(store: s3dlio.CheckpointStore, training: Training) -> None:
    file = io.BytesIO()
    torch.save(training.state(), file)
    key = store.save(200, 2, "torch", file.getbuffer())
    print(f"saved {file.tell()} bytes of one rank: {key}")
    fresh = Training(seed=1000)
    data = store.load_latest()
    assert isinstance(data, bytes)
    fresh.restore(data)
    assert same(fresh.state(), training.state())
    print("loaded the newest: equal")


def run(uri: str) -> None:
    store = s3dlio.CheckpointStore(uri)
    ranks = [Training(seed) for seed in range(WORLD_SIZE)]
    for training in ranks:
        training.step()
    save_of_two_ranks(store, ranks)
    load_of_two_ranks(store, ranks)
    save_and_load_of_one_rank(store, ranks[0])
    steps = [info.step for info in store.list_checkpoints()]
    print(f"there are checkpoints of the steps {steps}")


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(f"file://{folder}")


if __name__ == "__main__":
    main()
