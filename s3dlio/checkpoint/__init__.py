"""Checkpoints that are there as a whole or not at all, on every store; see docs/checkpoint.md."""

from s3dlio.checkpoint.functions import (
    finalize_distributed_checkpoint,
    load_checkpoint,
    load_checkpoint_with_validation,
    save_checkpoint,
    save_distributed_shard,
)
from s3dlio.checkpoint.ranks import CheckpointReader, CheckpointWriter
from s3dlio.checkpoint.shards import ShardStream
from s3dlio.checkpoint.store import CheckpointInfo, CheckpointStore

# The reference's names.
PyCheckpointInfo = CheckpointInfo
PyCheckpointReader = CheckpointReader
PyCheckpointStore = CheckpointStore
PyCheckpointStream = ShardStream
PyCheckpointWriter = CheckpointWriter

__all__ = [
    "CheckpointInfo",
    "CheckpointReader",
    "CheckpointStore",
    "CheckpointWriter",
    "PyCheckpointInfo",
    "PyCheckpointReader",
    "PyCheckpointStore",
    "PyCheckpointStream",
    "PyCheckpointWriter",
    "ShardStream",
    "finalize_distributed_checkpoint",
    "load_checkpoint",
    "load_checkpoint_with_validation",
    "save_checkpoint",
    "save_distributed_shard",
]
