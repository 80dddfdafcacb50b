"""The manifests below a URI: found, read, added and removed, with the shards that they name and the pointer."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from s3dlio import _ops
from s3dlio._errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    S3dlioError,
    StorageError,
    UnsupportedError,
)
from s3dlio._logging import logger
from s3dlio._many import for_each
from s3dlio._options import WriterOptions
from s3dlio._reader import read_range
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri
from s3dlio.checkpoint import latest
from s3dlio.checkpoint.layout import (
    MANIFESTS,
    SHARDS,
    Name,
    Shard,
    is_complete,
    new_name,
    parse_manifest,
    parse_manifest_key,
    parse_name,
    parse_shard,
    seal,
)
from s3dlio.checkpoint.shards import ShardStream

Result = TypeVar("Result")

# Requests at once that read or look at small objects.
AT_ONCE = 16

# A manifest has 300 bytes for each shard and 30 for each of their pieces.
_MAX_MANIFEST = 1 << 30

# How often a load begins again, since what it found is deleted meanwhile.
_MAX_RELOADS = 100


class Catalog:
    """The checkpoints below ``base``; ``options`` are those of their shards."""

    def __init__(self, base: Uri, options: WriterOptions) -> None:
        self.base = base
        self._options = options
        # Of what is no shard.
        self._plain = replace(options, compression=None, require_direct=False)
        store_for(base)  # whether there is one

    def new_stream(self, step: int, rank: int) -> ShardStream:
        return ShardStream(self.base, new_name(step), rank, self._options)

    # Found and read.

    def names(self) -> Iterator[Name]:
        """Of all manifests, in no order."""
        folder = self.base.below(MANIFESTS)
        start = len(self.base.folder)
        for uri in store_for(folder).list(folder, recursive=False):
            name = parse_manifest_key(uri.key[start:])
            if name is not None:
                yield name

    def read(self, name: Name) -> dict[str, Any]:
        uri = self.base.below(name.manifest_key)
        source = store_for(uri).open(uri)
        try:
            if source.size > _MAX_MANIFEST:
                raise CorruptDataError(f"load {uri}: {source.size} bytes are too many for a manifest", uri=str(uri))
            data = read_range(source, 0, source.size)
        finally:
            source.close()
        try:
            return parse_manifest(data, name)
        except CorruptDataError as error:
            raise CorruptDataError(f"load {uri}: the manifest is damaged: {error}", uri=str(uri)) from None

    def load_newest(self, load: Callable[[dict[str, Any]], Result], step: int | None, fall_back: bool) -> Result | None:
        """What ``load`` makes of the newest complete manifest.  Begins again when it is deleted meanwhile: there may be
        newer ones by then."""
        for _ in range(_MAX_RELOADS):
            try:
                return self._load_newest_of(self._newest_first(step), load, fall_back)
            except _VanishedError:
                continue
        raise StorageError(f"load {self.base}: whatever is found is deleted at once", uri=str(self.base))

    def find_shard(self, key: str) -> Shard | None:
        """The shard of this key, if a manifest names it; the newest one counts."""
        for name in self._newest_first(None):
            with suppress(NotFoundError):  # deleted meanwhile
                for record in self.read(name).get("shards", ()):
                    if record.get("key") == key:
                        return parse_shard(record)
        return None

    def no_such_step(self, step: int) -> NotFoundError:
        return NotFoundError(f"load {self.base}: there is no checkpoint of step {step}", uri=str(self.base))

    def _load_newest_of(
        self, names: Iterable[Name], load: Callable[[dict[str, Any]], Result], fall_back: bool
    ) -> Result | None:
        damage: S3dlioError | None = None
        for name in names:
            try:
                manifest = self.read(name)
                if not is_complete(manifest):
                    continue
                found = load(manifest)
            except S3dlioError as error:
                if isinstance(error, NotFoundError):
                    if not latest.is_there(self.base, name):
                        raise _VanishedError from None
                    error = _damaged(f"load {error.uri}: this shard of {name} is missing", error)
                if not fall_back or not _is_damage(error):
                    raise error
                logger.warning("%s; going back to the one before", error)
                warnings.warn(f"{error}; going back to the one before", RuntimeWarning, stacklevel=4)
                damage = damage or error
            else:
                return found
        if damage is not None:
            raise damage
        return None

    def _newest_first(self, step: int | None) -> list[Name]:
        names = set(self.names())
        # For a store whose list does not show yet what was just saved.
        pointed = latest.pointed(self.base)
        if pointed is not None and pointed not in names and latest.is_there(self.base, pointed):
            names.add(pointed)
        return sorted((name for name in names if step in (None, name.step)), reverse=True)

    # Added and removed.

    def add(self, manifest: dict[str, Any], proposed: Name | None = None) -> str:
        """Makes shards that are durable a checkpoint, of the proposed name if that is later than all that are there:
        whatever the clock says, the last one saved is the newest.  Returns the manifest's key."""
        newest = max((name.moment for name in self.names()), default=0)
        name = proposed
        if name is None or name.moment <= newest:
            name = new_name(manifest["global_step"], after=newest)
        uri = self.base.below(name.manifest_key)
        store_for(uri).put(uri, seal(manifest), self._plain)
        latest.advance(self.base, name, self._plain)
        logger.debug("saved %s", uri)
        return name.manifest_key

    def save(self, stream: ShardStream, make_manifest: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        """Makes a checkpoint of one shard, which is discarded when that fails."""
        manifest = make_manifest(stream.finalize())
        try:
            return self.add(manifest, stream.name)
        except BaseException:
            # Where a request that failed may still be carried out, the manifest may come later.
            if not store_for(self.base).acts_late and not self._is_named(stream):
                stream.discard()
            raise

    def _is_named(self, stream: ShardStream) -> bool:
        """Whether a manifest has the shard.  One that is added at this moment has the newest name of its step."""
        try:
            return any(
                stream.key in (record.get("key") for record in self.read(name).get("shards", ()))
                for name in self.names()
                if name.step == stream.name.step and name >= stream.name
            )
        except S3dlioError:
            return True

    def remove(self, names: Sequence[Name]) -> None:
        """From the oldest on, so that a step whose newest checkpoint is gone has none.  First the manifests: without
        its manifest a shard belongs to nothing, also after a loss of power."""
        folders: set[str] = set()
        for name in names:
            try:
                manifest = self.read(name)
                folders.update(parse_shard(record).folder for record in manifest["shards"])
            except (NotFoundError, CorruptDataError, InvalidInputError, KeyError, TypeError) as error:
                logger.info("%s: what shards it has is for clean_up() to find: %s", name, error)
            uri = self.base.below(name.manifest_key)
            store_for(uri).delete(uri, recursive=False)
        if self._options.durability == "full":
            store_for(self.base).sync(self.base.below(MANIFESTS))
        if latest.pointed(self.base) in names:
            latest.retract(self.base, max(self.names(), default=None), self._plain)
        for_each(sorted(folders), self._remove_folder, AT_ONCE)

    def _remove_folder(self, key: str) -> None:
        uri = self.base.below(key)
        for attempt in range(_MAX_RELOADS):
            try:
                store_for(uri).delete(uri, recursive=True)
                return
            except NotFoundError:  # somebody else deletes it as well
                if attempt == _MAX_RELOADS - 1:
                    raise

    def clean_up(self, older_than: timedelta | float) -> list[str]:
        """See `CheckpointStore.clean_up`."""
        before = _ops.begun_before(str(self.base), older_than)
        folders = {key: name for key, name in self._shard_folders() if name.moment <= before.timestamp() * 1e9}
        # After the folders: what was given a manifest in between is seen to have one.
        for name in self.names():
            if not folders:
                break
            try:
                manifest = self.read(name)
            except NotFoundError:
                continue
            for record in manifest["shards"]:
                folders.pop(parse_shard(record).folder, None)
        for key in folders:
            logger.info("clean_up %s: no manifest names it", self.base.below(key))
        for_each(sorted(folders), self._remove_folder, AT_ONCE)
        with suppress(UnsupportedError):  # only some stores have such
            _ops.abort_stale_uploads(str(self.base.below(SHARDS)), older_than)
        return sorted(folders)

    def _shard_folders(self) -> Iterator[tuple[str, Name]]:
        start = len(self.base.folder)
        todo = [self.base.below(SHARDS)]
        while todo:
            folder = todo.pop()
            for uri in store_for(folder).list(folder, recursive=False):
                if not uri.key.endswith("/"):
                    continue
                name = parse_name(uri.key.rstrip("/").rpartition("/")[2])
                if name is not None:
                    yield uri.key[start:], name
                else:
                    todo.append(uri)


class _VanishedError(Exception):
    """What was to be loaded is deleted."""


def _damaged(text: str, cause: S3dlioError) -> CorruptDataError:
    return CorruptDataError(text, operation=cause.operation, uri=cause.uri, errno=cause.errno)


def _is_damage(error: S3dlioError) -> bool:
    """Whether an older checkpoint may be whole."""
    return isinstance(error, CorruptDataError) or error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
