"""The manifests below a URI: found, read, added and removed, with the shards that they name and the pointer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
    copy_of,
)
from s3dlio._logging import logger
from s3dlio._many import for_each
from s3dlio._options import WriterOptions
from s3dlio._stores.base import ObjectStat
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri
from s3dlio.checkpoint import latest
from s3dlio.checkpoint.documents import is_damage, read_document
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
    parse_shards,
    seal,
    shard_folders,
    shard_keys,
)
from s3dlio.checkpoint.shards import ShardStream

Result = TypeVar("Result")

# Requests at once that read or look at small objects.
AT_ONCE = 16

# A manifest has 300 bytes for each shard and 30 for each of their pieces.
_MAX_MANIFEST = 1 << 30

# How often a load or a list begins again, since what it found is deleted meanwhile.
MAX_RELOADS = 100


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
        data = read_document(uri, _MAX_MANIFEST)
        try:
            return parse_manifest(data, name)
        except CorruptDataError as error:
            raise CorruptDataError(f"load {uri}: the manifest is damaged: {error}", uri=str(uri)) from None

    def load_newest(self, load: Callable[[dict[str, Any]], Result], step: int | None, fall_back: bool) -> Result | None:
        """What ``load`` makes of the newest complete manifest.  Begins again when it is deleted meanwhile: there may be
        newer ones by then."""
        gone: set[Name] = set()  # which a list that lags still has
        for _ in range(MAX_RELOADS):
            try:
                return self._load_newest_of(self._newest_first(step, gone), load, fall_back)
            except _VanishedError as error:
                gone.add(error.name)
        raise StorageError(f"load {self.base}: whatever is found is deleted at once", uri=str(self.base))

    def find_shard(self, key: str) -> Shard | None:
        """The shard of this key, if a complete manifest names it; the newest one counts."""
        damage: S3dlioError | None = None
        for name in self._newest_first(None):
            try:
                manifest = self.read(name)
            except NotFoundError:  # deleted meanwhile
                continue
            except S3dlioError as error:  # perhaps not of this one
                if not is_damage(error):
                    raise
                damage = damage or error
                continue
            for shard in parse_shards(manifest) if is_complete(manifest) else ():
                if shard.key == key:
                    return shard
        if damage is not None:
            raise damage
        return None

    def has_shards(self, name: Name) -> bool:
        """Whether all its shards are there, in their sizes."""
        try:
            for_each(parse_shards(self.read(name)), self.check_stored, AT_ONCE)
        except (NotFoundError, CorruptDataError):
            return False
        return True

    def check_stored(self, shard: Shard) -> ObjectStat:
        uri = self.base.below(shard.key)
        try:
            found = store_for(uri).stat(uri)
        except NotFoundError:
            text = f"finalize {uri}: the shard of rank {shard.rank} is not there"
            raise CorruptDataError(text, operation="finalize", uri=str(uri)) from None
        if found["size"] != shard.size:
            text = f"finalize {uri}: the shard of rank {shard.rank} has {found['size']} bytes instead of {shard.size}"
            raise CorruptDataError(text, operation="finalize", uri=str(uri))
        return found

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
                if self._is_gone(name, error):
                    raise _VanishedError(name) from None
                if isinstance(error, NotFoundError):
                    error = _damaged(f"load {error.uri}: this shard of {name} is missing", error)
                if not fall_back or not is_damage(error):
                    raise error from damage
                warnings.warn(f"{error}; going back to the one before", RuntimeWarning, stacklevel=4)
                # Without its traceback, in whose frames lies what was loaded.
                damage = damage or copy_of(error)
            else:
                logger.debug("loaded %s", self.base.below(name.manifest_key))
                return found
        if damage is not None:
            raise damage
        return None

    def _is_gone(self, name: Name, error: S3dlioError) -> bool:
        """Whether it failed since the checkpoint is deleted.  Of that each store tells in its own way: Azure that what
        was opened has changed."""
        if not isinstance(error, (NotFoundError, CorruptDataError, StorageError)):
            return False
        try:
            return not latest.is_there(self.base, name)
        except S3dlioError:
            return False

    def _newest_first(self, step: int | None, gone: Collection[Name] = ()) -> list[Name]:
        names = self._names_and_pointed()
        return sorted((name for name in names if step in (None, name.step) and name not in gone), reverse=True)

    def _names_and_pointed(self) -> set[Name]:
        """For a store whose list does not show yet what was just saved."""
        names = set(self.names())
        pointed = latest.pointed(self.base)
        if pointed is not None and pointed not in names and latest.is_there(self.base, pointed):
            names.add(pointed)
        return names

    # Added and removed.

    def add(self, manifest: dict[str, Any]) -> str:
        """Makes shards that are durable a checkpoint, and returns the key of its manifest."""
        name, document = self._prepared(manifest, None)
        return self._add(name, document)

    def _prepared(self, manifest: dict[str, Any], proposed: Name | None) -> tuple[Name, bytes]:
        """The manifest's text and its name: the proposed one if that is later than all that are there.  Whatever the
        clock says, the last one saved is the newest."""
        document = seal(manifest)
        if len(document) > _MAX_MANIFEST:
            raise InvalidInputError(f"save {self.base}: {len(document)} bytes are too many for a manifest")
        newest = max((name.moment for name in self.names()), default=0)
        if proposed is None or proposed.moment <= newest:
            return new_name(manifest["global_step"], after=newest), document
        return proposed, document

    def _add(self, name: Name, document: bytes) -> str:
        uri = self.base.below(name.manifest_key)
        store_for(uri).put(uri, document, self._plain)
        latest.advance(self.base, name, self._plain)
        logger.debug("saved %s", uri)
        return name.manifest_key

    def save(self, stream: ShardStream, make_manifest: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        """Makes a checkpoint of one shard, which is discarded when that fails."""
        is_sent = False
        try:
            name, document = self._prepared(make_manifest(stream.finalize()), stream.name)
            is_sent = True
            return self._add(name, document)
        except BaseException:
            # Where a request that failed may still be carried out, the manifest may come later.
            if not is_sent or not (store_for(self.base).acts_late or self._is_named(stream)):
                stream.discard()
            raise

    def _is_named(self, stream: ShardStream) -> bool:
        """Whether a manifest has the shard.  One that is added at this moment has the newest name of its step."""
        try:
            return any(
                stream.key in shard_keys(self.read(name))
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
            folders |= self._folders_of(name) or set()
            uri = self.base.below(name.manifest_key)
            store_for(uri).delete(uri, recursive=False)
            logger.debug("deleted %s", uri)
        if self._options.durability == "full":
            store_for(self.base).sync(self.base.below(MANIFESTS))
        left = self._names_and_pointed().difference(names)
        if latest.pointed(self.base) in names:
            latest.retract(self.base, max(left, default=None), self._plain)
        # Who finalizes the same records twice, since the first answer was lost, has two manifests with the same shards.
        for name in left if folders else ():
            if any(name.step == gone.step for gone in names):
                others = self._folders_of(name)
                folders = folders - others if others is not None else set()
        for_each(sorted(folders), self._remove_folder, AT_ONCE)

    def _folders_of(self, name: Name) -> set[str] | None:
        """Where its shards are, or None if that cannot be read."""
        try:
            return shard_folders(self.read(name))
        except NotFoundError:
            return set()
        except S3dlioError as error:
            if not is_damage(error):
                raise
            logger.info("%s: what shards it has is for clean_up() to find: %s", name, error)
            return None

    def _remove_folder(self, key: str) -> None:
        uri = self.base.below(key)
        for attempt in range(MAX_RELOADS):
            try:
                store_for(uri).delete(uri, recursive=True)
                return
            except NotFoundError:  # somebody else deletes it as well
                if attempt == MAX_RELOADS - 1:
                    raise

    def clean_up(self, older_than: timedelta | float) -> list[str]:
        """See `CheckpointStore.clean_up`."""
        before = _ops.begun_before(str(self.base), older_than)
        folders = dict.fromkeys(key for key, name in self._shard_folders() if name.moment <= before.timestamp() * 1e9)
        # After the folders: what was given a manifest in between is seen to have one.
        for name in self._names_and_pointed() if folders else ():
            try:
                manifest = self.read(name)
            except NotFoundError:
                continue
            for key in shard_folders(manifest):
                folders.pop(key, None)
        for key in folders:
            logger.info("clean_up %s: no manifest names it", self.base.below(key))
        empty = set()

        def remove(key: str) -> None:
            if not self._has_objects(key):
                empty.add(key)
            self._remove_folder(key)

        for_each(sorted(folders), remove, AT_ONCE)
        if empty:  # some servers of S3 go on to list folders of which nothing is left
            for key in empty.intersection(key for key, _ in self._shard_folders()):
                del folders[key]
        start = len(self.base.folder)
        with suppress(UnsupportedError):  # only some stores have such
            for upload in _ops.abort_stale_uploads(str(self.base.below(SHARDS)), older_than):
                folders[parse_uri(upload.uri).key[start:].rpartition("/")[0] + "/"] = None
        return sorted(folders)

    def _has_objects(self, key: str) -> bool:
        folder = self.base.below(key)
        return any(True for _ in store_for(folder).list(folder, recursive=True))

    def _shard_folders(self) -> Iterator[tuple[str, Name]]:
        start = len(self.base.folder)
        todo = [self.base.below(SHARDS)]
        while todo:
            folder = todo.pop()
            for uri in store_for(folder).list(folder, recursive=False):
                if not uri.key.endswith("/"):
                    continue
                last = uri.key.rstrip("/").rpartition("/")[2]
                name = parse_name(last)
                if name is not None:
                    yield uri.key[start:], name
                elif last + "/" not in (SHARDS, MANIFESTS):  # those of another store in there
                    todo.append(uri)


class _VanishedError(Exception):
    """What was to be loaded is deleted."""

    def __init__(self, name: Name) -> None:
        super().__init__(str(name))
        self.name = name


def _damaged(text: str, cause: S3dlioError) -> CorruptDataError:
    return CorruptDataError(text, operation=cause.operation, uri=cause.uri, errno=cause.errno)
