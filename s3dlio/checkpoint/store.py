"""Checkpoints in a store: saved so that each is there as a whole or not at all, loaded with every byte compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, overload

from s3dlio._errors import InvalidInputError, NotFoundError, S3dlioError, UnsupportedError
from s3dlio._logging import logger
from s3dlio._many import for_each
from s3dlio._options import WriterOptions, whole_number
from s3dlio._uri import parse_uri
from s3dlio.checkpoint.arguments import check_json, check_text, chunks, count_of, either
from s3dlio.checkpoint.catalog import AT_ONCE, MAX_RELOADS, Catalog
from s3dlio.checkpoint.documents import is_damage
from s3dlio.checkpoint.layout import Name, is_complete, new_manifest, parse_shard, parse_shards
from s3dlio.checkpoint.loading import Progress, load_shard
from s3dlio.checkpoint.ranks import CheckpointReader, CheckpointWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3dlio.checkpoint.arguments import Data

# The reference spreads its keys over folders, or not; ours need no spreading.
_STRATEGIES = (None, "flat", "round_robin", "binary")


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint in a store's list.

    ``timestamp`` orders checkpoints by the time of their saving (UTC); ``total_size`` counts the bytes stored;
    ``status`` is ``'complete'``, ``'damaged'`` if the manifest cannot be read (what it would tell is 0 or empty then),
    or what else another program has put there.  ``key`` is that of the manifest.
    """

    step: int
    epoch: int
    name: str
    timestamp: str
    world_size: int
    total_size: int
    status: str
    key: str

    @property
    def framework(self) -> str:
        """The same as ``name``."""
        return self.name

    def is_complete(self) -> bool:
        """Whether all its shards are named."""
        return self.status == "complete"


class CheckpointStore:
    """Checkpoints below a URI, on any store: ``file``, ``direct``, ``memory``, ``s3`` or ``az``.

    A checkpoint is there as a whole once `save` has returned, and before that not at all; what a load returns has the
    bytes that were saved, or it raises.  Several processes may save, load and delete at once.

    ``compression_level`` 1 to 22 stores zstd, ``None`` the bytes as they come.  ``multipart_threshold``, in bytes, is
    what a shard must have to be sent in several parts (``buffer_size`` of `s3dlio.WriterOptions`).  ``strategy`` may be
    'flat', 'round_robin' or 'binary' and changes nothing: keys need not be spread over folders.  ``options`` says all
    else that concerns writing.
    """

    def __init__(
        self,
        uri: str,
        strategy: str | None = None,
        multipart_threshold: int | None = None,
        compression_level: int | None = None,
        *,
        options: WriterOptions | None = None,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise InvalidInputError(f"strategy must be 'flat', 'round_robin' or 'binary', not {strategy!r}")
        if options is not None and not isinstance(options, WriterOptions):
            raise TypeError(f"options must be WriterOptions, not {type(options).__name__}")
        chosen = options or WriterOptions()
        base = parse_uri(uri)
        if not chosen.create_parents and base.scheme in ("file", "direct"):
            raise InvalidInputError("create_parents must be True: each checkpoint has a folder of its own")
        if multipart_threshold is not None:
            size = whole_number("multipart_threshold", multipart_threshold)
            if size < 1:
                raise InvalidInputError(f"multipart_threshold must be at least 1, not {size}")
            chosen = replace(chosen, buffer_size=size)
        if compression_level is not None:
            level = whole_number("compression_level", compression_level)
            if not 1 <= level <= 22:
                raise InvalidInputError(f"compression_level must be 1 to 22, not {level}")
            chosen = replace(chosen, compression="zstd", level=level)
        self._catalog = Catalog(base, replace(chosen, verify=chosen.verify or "checksum"))

    @property
    def uri(self) -> str:
        """The store's, without a slash at its end."""
        text = str(self._catalog.base)
        return text if text.endswith("//") else text.removesuffix("/")

    # Saving.

    def save(
        self,
        step: int,
        epoch: int,
        name: str | None = None,
        data: Data | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        framework: str | None = None,
        user_meta: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Saves a checkpoint of one shard, and returns the key of its manifest.  It is in place then, and durable.

        ``data`` is anything with a C-contiguous buffer, a binary file object that is read to its end, or an iterable of
        buffers; it is never held as a whole.  ``name`` says what it is of, such as 'torch'; ``metadata`` is a dict that
        JSON can hold.  ``framework`` and ``user_meta`` are other words for them.  ``progress`` is told the count of
        bytes taken so far.

        Whatever it raises, the checkpoints that were there are untouched; in the rare case that the store has taken
        the manifest and its answer was lost, or that Ctrl-C came after that, the new one is there as well, whole.
        """
        name = either("name", name, "framework", framework)
        metadata = either("metadata", metadata, "user_meta", user_meta, missing=None)
        if data is None:
            raise TypeError("save() needs data")
        step, epoch = count_of("step", step), count_of("epoch", epoch)
        check_text(name)
        check_json(metadata)
        with self._catalog.new_stream(step, 0) as stream:
            for chunk in chunks(data):
                stream.write_chunk(chunk)
                if progress is not None:
                    progress(stream.bytes_written())
        return self._catalog.save(stream, lambda record: new_manifest(step, epoch, name, [record], 1, metadata))

    def writer(self, world_size: int, rank: int) -> CheckpointWriter:
        """For one rank, 0 to ``world_size - 1``, of a checkpoint that several processes save together."""
        return CheckpointWriter(self._catalog, world_size, rank)

    # Loading.

    @overload
    def load_latest(
        self, fall_back: bool = False, *, into: None = None, progress: Progress | None = None
    ) -> bytes | None: ...

    @overload
    def load_latest(self, fall_back: bool = False, *, into: Any, progress: Progress | None = None) -> int | None: ...

    def load_latest(
        self, fall_back: bool = False, *, into: Any | None = None, progress: Progress | None = None
    ) -> bytes | int | None:
        """Returns the newest checkpoint's bytes, or None if there is none.

        With ``into`` its memory is filled from the beginning, and the count of bytes is returned.  ``progress`` is told
        the count of bytes read so far, in any thread, one call at a time.

        A damaged checkpoint raises CorruptDataError, a RuntimeError, that names shard and offset; with ``fall_back`` a
        warning says so, and the newest one that is whole is loaded.  One of several shards raises UnsupportedError:
        `reader` reads those.
        """
        if not isinstance(fall_back, bool):  # a step perhaps, which is for load()
            raise TypeError(f"fall_back must be True or False, not {fall_back!r}")
        return self._catalog.load_newest(lambda manifest: self._load_single(manifest, into, progress), None, fall_back)

    @overload
    def load(self, step: int, *, into: None = None, progress: Progress | None = None) -> bytes: ...

    @overload
    def load(self, step: int, *, into: Any, progress: Progress | None = None) -> int: ...

    def load(self, step: int, *, into: Any | None = None, progress: Progress | None = None) -> bytes | int:
        """Returns the bytes of the newest checkpoint of a step, or fills ``into`` and returns their count, as
        `load_latest` does.  Raises NotFoundError if there is none."""
        step = count_of("step", step)
        found = self._catalog.load_newest(
            lambda manifest: self._load_single(manifest, into, progress), step, fall_back=False
        )
        if found is None:
            raise self._catalog.no_such_step(step)
        return found

    def reader(self) -> CheckpointReader:
        """For checkpoints of several shards, and parts of one."""
        return CheckpointReader(self._catalog)

    def _load_single(self, manifest: Mapping[str, Any], into: Buffer | None, progress: Progress | None) -> bytes | int:
        shards = parse_shards(manifest)
        if len(shards) != 1:
            text = f"load {self._catalog.base}: step {manifest['global_step']} has {len(shards)} shards, see reader()"
            raise UnsupportedError(text, operation="load", uri=str(self._catalog.base))
        return load_shard(self._catalog.base, shards[0], into, progress)

    # What is there.

    def list_checkpoints(self) -> list[CheckpointInfo]:
        """Returns what is there, from the oldest to the newest."""
        found: dict[Name, CheckpointInfo] = {}

        def look(name: Name) -> None:
            try:
                manifest = self._catalog.read(name)
            except NotFoundError:  # deleted meanwhile
                return
            except S3dlioError as error:
                if not is_damage(error):
                    raise
                logger.warning("%s", error)
                manifest = {"status": "damaged"}
            found[name] = _info(name, manifest)

        for _ in range(MAX_RELOADS):
            names = set(self._catalog.names())
            for_each(sorted(names - found.keys()), look, AT_ONCE)
            if names <= found.keys():
                break
            # Of what is deleted meanwhile another save may have taken the place.
        return [found[name] for name in sorted(names & found.keys())]

    def delete_checkpoint(self, step: int) -> bool:
        """Deletes all checkpoints of a step, and returns whether there was one."""
        step = count_of("step", step)
        doomed = sorted(name for name in self._catalog.names() if name.step == step)
        self._catalog.remove(doomed)
        return bool(doomed)

    def keep_last(self, n: int) -> list[CheckpointInfo]:
        """Deletes all that is older than the newest ``n`` complete checkpoints, at least 1, and returns what it was.

        One whose manifest is damaged, or of which a shard is missing or has another size, does not count: it stays if
        it is newer than the oldest of those, and goes with the rest if it is older.  The bytes are not read.
        """
        n = whole_number("n", n)
        if n < 1:
            raise InvalidInputError(f"keep_last must keep at least 1 checkpoint, not {n}")
        infos = self.list_checkpoints()
        kept = 0
        for index in reversed(range(len(infos))):
            kept += infos[index].is_complete() and self._catalog.has_shards(_name_of(infos[index]))
            if kept == n:
                doomed = infos[:index]
                self._catalog.remove([_name_of(info) for info in doomed])
                return doomed
        return []

    def clean_up(self, older_than: timedelta | float) -> list[str]:
        """Deletes shards that no manifest names, and uploads that nobody has ended, begun longer ago than
        ``older_than`` (a timedelta, or seconds), and returns their folders' keys.

        A save that was killed leaves such, as does one that lost its connection.  What a save under way has stored
        looks the same: so let ``older_than`` be longer than the longest save, of all ranks together.
        """
        return self._catalog.clean_up(older_than)

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self._catalog.base)!r})"


def _info(name: Name, manifest: Mapping[str, Any]) -> CheckpointInfo:
    shards = manifest.get("shards", ())
    return CheckpointInfo(
        step=name.step,
        epoch=manifest.get("epoch", 0),
        name=str(manifest.get("framework", "")),
        timestamp=name.timestamp,
        world_size=manifest.get("world_size", 0),
        total_size=sum(parse_shard(record).size for record in shards) if is_complete(manifest) else 0,
        status=str(manifest.get("status")),
        key=name.manifest_key,
    )


def _name_of(info: CheckpointInfo) -> Name:
    return Name(info.timestamp, info.step)
