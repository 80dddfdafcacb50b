"""The same for who has no `CheckpointStore` at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from s3dlio import _ops
from s3dlio._errors import InvalidInputError, NotFoundError
from s3dlio._options import WriterOptions
from s3dlio._reader import open_reader
from s3dlio._uri import Uri, parse_uri
from s3dlio.checkpoint.catalog import Catalog
from s3dlio.checkpoint.layout import split_shard_key
from s3dlio.checkpoint.loading import load_shard
from s3dlio.checkpoint.store import CheckpointStore

if TYPE_CHECKING:
    from s3dlio.checkpoint.arguments import Data


def save_checkpoint(
    uri: str, step: int, epoch: int, framework: str, data: Data, user_meta: Mapping[str, Any] | None = None
) -> str:
    """`CheckpointStore.save` below a URI."""
    return CheckpointStore(uri).save(step, epoch, framework, data, user_meta)


def load_checkpoint(uri: str) -> bytes | None:
    """`CheckpointStore.load_latest` below a URI."""
    found = CheckpointStore(uri).load_latest()
    assert not isinstance(found, int)
    return found


def load_checkpoint_with_validation(uri: str, validate_integrity: bool = True) -> bytes | None:
    """Returns the bytes of the shard at ``uri``, compared with its size and checksums in the newest manifest that names
    it, or, given the URI of a store, what `load_checkpoint` returns, which always compares.

    ``validate_integrity=False`` reads a shard without comparing it, also one that no manifest names.  Else that raises
    NotFoundError, and a difference CorruptDataError.
    """
    parsed = parse_uri(uri)
    base_key, key = split_shard_key(parsed.key)
    if key is None:
        if validate_integrity:
            return load_checkpoint(uri)
        raise InvalidInputError(f"load {uri}: without validation it must be the URI of a shard", uri=uri)
    if not validate_integrity:
        if not key.endswith(".zst"):
            return _ops.get(uri)
        with open_reader(uri, decompress=True) as reader:
            return reader.read()
    base = Uri(parsed.scheme, parsed.container, base_key)
    shard = Catalog(base, WriterOptions()).find_shard(key)
    if shard is None:
        raise NotFoundError(f"load {uri}: no manifest names this shard", operation="load", uri=uri)
    found = load_shard(base, shard)
    assert isinstance(found, bytes)
    return found


def save_distributed_shard(
    uri: str, step: int, epoch: int, framework: str, data: Data, world_size: int, rank: int
) -> dict[str, Any]:
    """`CheckpointWriter.save_distributed_shard` below a URI."""
    return CheckpointStore(uri).writer(world_size, rank).save_distributed_shard(step, epoch, framework, data)


def finalize_distributed_checkpoint(
    uri: str,
    step: int,
    epoch: int,
    framework: str,
    shard_metas: Iterable[Mapping[str, Any]],
    world_size: int,
    rank: int = 0,
    user_meta: Mapping[str, Any] | None = None,
) -> str:
    """`CheckpointWriter.finalize_distributed_checkpoint` below a URI."""
    writer = CheckpointStore(uri).writer(world_size, rank)
    return writer.finalize_distributed_checkpoint(step, epoch, framework, shard_metas, user_meta)
