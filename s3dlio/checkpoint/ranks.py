"""Checkpoints of several shards: one rank's part in saving them, and reading them shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

from s3dlio._errors import CorruptDataError, InvalidInputError, NotFoundError
from s3dlio._many import for_each
from s3dlio._options import whole_number
from s3dlio._stores.registry import store_for
from s3dlio.checkpoint.arguments import check_json, check_text, chunks, count_of
from s3dlio.checkpoint.catalog import AT_ONCE, Catalog
from s3dlio.checkpoint.layout import MAX_WORLD_SIZE, Shard, new_manifest, parse_shards
from s3dlio.checkpoint.loading import Progress, load_range, load_shard
from s3dlio.checkpoint.shards import ShardStream

if TYPE_CHECKING:
    from s3dlio.checkpoint.arguments import Data


class CheckpointWriter:
    """One rank's part in saving a checkpoint: each rank stores its shard, and one that has the records of all, rank 0
    or any other, finalizes."""

    def __init__(self, catalog: Catalog, world_size: int, rank: int) -> None:
        self._catalog = catalog
        self._world_size = whole_number("world_size", world_size)
        self._rank = count_of("rank", rank)
        if self._world_size > MAX_WORLD_SIZE:
            raise InvalidInputError(f"world_size must be at most {MAX_WORLD_SIZE}, not {world_size}")
        if self._rank >= self._world_size:
            raise InvalidInputError(f"rank must be 0 to world_size - 1, and is {rank} of {world_size}")

    def save_distributed_shard(self, step: int, epoch: int, framework: str, data: Data) -> dict[str, Any]:
        """Stores this rank's shard, given as to `CheckpointStore.save`, and returns its record, which is a dict that
        can be sent as JSON or a pickle."""
        with self.get_distributed_shard_stream(step, epoch, framework) as stream:
            for chunk in chunks(data):
                stream.write_chunk(chunk)
        return stream.finalize()

    def get_distributed_shard_stream(self, step: int, epoch: int, framework: str) -> ShardStream:
        """Begins this rank's shard; its ``finalize`` returns the record."""
        count_of("epoch", epoch)
        check_text(framework)
        return self._catalog.new_stream(count_of("step", step), self._rank)

    def finalize_distributed_checkpoint(
        self,
        step: int,
        epoch: int,
        framework: str,
        shard_metas: Iterable[Mapping[str, Any]],
        user_meta: Mapping[str, Any] | None = None,
    ) -> str:
        """Makes the shards of all ranks, given by their records in any order, a checkpoint, and returns the key of its
        manifest.

        Raises InvalidInputError that names ranks which are missing or there twice and shards of another step, and
        CorruptDataError for a shard that is not there as its record says; then nothing has changed.
        """
        check_text(framework)
        check_json(user_meta)
        step, epoch = count_of("step", step), count_of("epoch", epoch)
        manifest = new_manifest(step, epoch, framework, list(shard_metas), self._world_size, user_meta)
        for_each(parse_shards(manifest), self._check_stored, AT_ONCE)
        return self._catalog.add(manifest)

    def _check_stored(self, shard: Shard) -> None:
        found = self._catalog.check_stored(shard)
        uri = self._catalog.base.below(shard.key)
        if store_for(uri).shares_tags and shard.etag not in ("", found["etag"]):
            text = f"finalize {uri}: the shard of rank {shard.rank} is not the one of its record"
            raise CorruptDataError(text, operation="finalize", uri=str(uri))


class CheckpointReader:
    """Reads shards, of one rank or several."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def load_latest_manifest(self) -> dict[str, Any] | None:
        """Returns the manifest of the newest complete checkpoint, as docs/checkpoint.md describes it, or None."""
        return self._catalog.load_newest(lambda manifest: manifest, None, fall_back=False)

    def load_manifest(self, step: int) -> dict[str, Any]:
        """Returns the manifest of the newest complete checkpoint of a step.  Raises NotFoundError if there is none."""
        found = self._catalog.load_newest(lambda manifest: manifest, count_of("step", step), fall_back=False)
        if found is None:
            raise self._catalog.no_such_step(step)
        return found

    @overload
    def read_shard_by_rank(
        self, manifest: Mapping[str, Any], rank: int, *, into: None = None, progress: Progress | None = None
    ) -> bytes: ...

    @overload
    def read_shard_by_rank(
        self, manifest: Mapping[str, Any], rank: int, *, into: Any, progress: Progress | None = None
    ) -> int: ...

    def read_shard_by_rank(
        self,
        manifest: Mapping[str, Any],
        rank: int,
        *,
        into: Any | None = None,
        progress: Progress | None = None,
    ) -> bytes | int:
        """Returns a shard's bytes, or fills memory with them and returns their count, see `CheckpointStore.load`."""
        with self._of_manifest(rank):
            return load_shard(self._catalog.base, _shard_of(manifest, rank), into, progress)

    def read_shard_range(
        self, manifest: Mapping[str, Any], rank: int, offset: int, length: int, *, verify: bool = True
    ) -> bytes:
        """Returns bytes of a shard from ``offset`` on; fewer at its end.

        All of the pieces of 64 MiB that they are in is read and compared; ``verify=False`` reads only them.  A
        compressed shard is decompressed from its beginning.
        """
        offset, length = count_of("offset", offset), count_of("length", length)
        with self._of_manifest(rank):
            return load_range(self._catalog.base, _shard_of(manifest, rank), offset, length, verify)

    @contextmanager
    def _of_manifest(self, rank: int) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            text = f"load {error.uri}: the shard of rank {rank} is not there: it is lost, or its checkpoint was deleted"
            raise CorruptDataError(text, operation="load", uri=error.uri) from None


def _shard_of(manifest: Mapping[str, Any], rank: int) -> Shard:
    if not isinstance(manifest, Mapping):
        raise TypeError(f"a manifest is needed, as of load_manifest(), not {type(manifest).__name__}")
    rank = count_of("rank", rank)
    shards = parse_shards(manifest)
    if rank >= len(shards):
        raise InvalidInputError(f"there is no rank {rank} in a world of {len(shards)}")
    return shards[rank]
