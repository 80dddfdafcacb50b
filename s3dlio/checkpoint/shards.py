"""One shard of a checkpoint on its way into a store, with a checksum for each piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any

from s3dlio._checksum import checksum_text, crc32c_combine
from s3dlio._errors import BusyError, ClosedError, CorruptDataError, S3dlioError
from s3dlio._logging import logger
from s3dlio._native import ffi, pointer
from s3dlio._options import WriterOptions
from s3dlio._stores.base import Stream
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri
from s3dlio._writer import ObjectWriter
from s3dlio.checkpoint.layout import PIECE, Name, Piece, Shard

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer


class ShardStream:
    """Writes one shard from chunks of any size; made by `CheckpointWriter.get_distributed_shard_stream`.

    It belongs to no checkpoint before `CheckpointWriter.finalize_distributed_checkpoint` was given the record that
    `finalize` returns.  As with `s3dlio.ObjectWriter`, leaving a ``with`` block finalizes, leaving it by an exception
    cancels, and the first failure sticks.  It is a binary file object as far as ``torch.save`` and ``pickle.dump`` need
    one.
    """

    def __init__(self, base: Uri, name: Name, rank: int, options: WriterOptions) -> None:
        self._writer = ObjectWriter(base.below(name.shard_key(rank)), options)
        self.name = name
        self._base = base
        self._rank = rank
        # The end of each piece, and the CRC32C of all that is stored up to there.
        self._ends: list[tuple[int, int]] = []
        # What may still come into the piece at hand.
        self._room = PIECE
        self._record: dict[str, Any] | None = None

    @property
    def uri(self) -> str:
        """Where the shard will stand."""
        return self._writer.uri

    @property
    def key(self) -> str:
        """Where the shard will stand, below the store's URI."""
        return parse_uri(self.uri).key.removeprefix(self._base.folder)

    def write_chunk(self, chunk: Buffer) -> int:
        """Appends the bytes of ``chunk``, see `s3dlio.ObjectWriter.write_chunk`; returns their count."""
        data = chunk if type(chunk) is bytes else memoryview(ffi.buffer(pointer(chunk)))
        if len(data) < self._room:
            self._writer.write_chunk(data)
            self._room -= len(data)  # perhaps below 0, if a signal handler has written in between
            return len(data)
        whole = pointer(data)
        self._writer.run("write", lambda stream: self._write_pieces(stream, whole))
        return len(data)

    def _write_pieces(self, stream: Stream, data: Any) -> None:
        done = 0
        while done < len(data):
            if self._room <= 0:
                self._end_piece()
            part = data[done : min(done + self._room, len(data))]
            stream.write(part)
            self._room -= len(part)
            done += len(part)

    write = write_chunk

    def flush(self) -> None:
        """Does nothing: what was written lasts when `finalize` has returned."""

    def _end_piece(self) -> None:
        """The piece is what has been stored since the last one, of which a compressor may hold back a part."""
        stats = self._writer.stats()
        if stats.compressed_bytes > (self._ends[-1][0] if self._ends else 0):
            self._ends.append((stats.compressed_bytes, stats.stored_crc32c))
        self._room = PIECE

    def _pieces(self) -> Iterator[Piece]:
        for (begin, before), (end, crc) in pairwise([(0, 0), *self._ends]):
            # The checksum of all is that of what was before, shifted, with that of the piece.
            yield Piece(end, crc ^ crc32c_combine(before, 0, end - begin))

    def writelines(self, lines: Iterable[Buffer]) -> None:
        """Writes one after the other."""
        for line in lines:
            self.write_chunk(line)

    def read(self, size: int = -1) -> bytes:
        """Raises UnsupportedError: what is written cannot be read yet."""
        return self._writer.read(size)

    def tell(self) -> int:
        """The count of bytes that came in so far."""
        return self._writer.tell()

    def readable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """False: it only goes on."""
        return False

    def writable(self) -> bool:
        """Whether it takes more bytes."""
        return self._writer.writable()

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes."""
        return self._writer.closed

    def bytes_written(self) -> int:
        """Bytes that came in so far, before compression."""
        return self._writer.bytes_written()

    def finalize(self) -> dict[str, Any]:
        """Makes the shard durable.  Returns its record: a dict that can be sent to another rank as JSON or a pickle.
        Called again it returns the same."""
        if self._record is None:
            try:
                self._writer.finalize()
                self._end_piece()
                self._record = self._shard().record()
            except (BusyError, ClosedError):  # another call is at it, and will tell
                raise
            except BaseException:
                self.cancel()
                raise
        return self._record

    def _shard(self) -> Shard:
        stats = self._writer.stats()
        uri = parse_uri(self._writer.uri)
        found = store_for(uri).stat(uri)
        if found["size"] != stats.compressed_bytes:
            text = f"finalize {uri}: {found['size']} bytes stand there, and {stats.compressed_bytes} were written"
            raise CorruptDataError(text, operation="finalize", uri=str(uri))
        return Shard(
            rank=self._rank,
            key=self.key,
            size=stats.compressed_bytes,
            checksum=checksum_text(stats.stored_crc32c),
            raw_size=stats.bytes_written,
            raw_checksum=checksum_text(stats.crc32c),
            pieces=tuple(self._pieces()),
            etag=found["etag"],
        )

    def cancel(self) -> None:
        """Drops the shard.  Does nothing after `finalize`."""
        if self._record is not None:
            return
        with suppress(S3dlioError):  # another thread is inside a call, or the writer is the parent's
            if self._writer.stats().visible:
                self.discard()
            else:
                self._writer.abort()

    def discard(self) -> None:
        """Deletes what is stored.  Where that fails, `CheckpointStore.clean_up` will find it."""
        folder = parse_uri(self._writer.uri.rpartition("/")[0] + "/")
        try:
            store_for(folder).delete(folder, recursive=True)
        except S3dlioError as error:
            logger.warning("left behind, for clean_up(): %s: %s", folder, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        else:
            self.finalize()

    def __repr__(self) -> str:
        return repr(self._writer).replace("ObjectWriter", "ShardStream", 1)
