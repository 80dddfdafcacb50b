"""Objects between this machine's files and a store, and between stores."""

from __future__ import annotations

import errno
import glob
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from stat import S_ISREG
from typing import Any, NoReturn

from s3dlio import _cancel
from s3dlio._errors import CorruptDataError, InvalidInputError, NotFoundError, S3dlioError, StorageError
from s3dlio._logging import logger
from s3dlio._many import for_each, threads_for
from s3dlio._native import pointer, raise_status
from s3dlio._options import WriterOptions, writer_options
from s3dlio._stores.base import Source
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri
from s3dlio._writer import ObjectWriter

# Bytes that are read at once.
_PIECE = 8 << 20

Progress = Callable[[int, int], object]


class _Count:
    """What is done so far, for a function that is told (bytes done, bytes in all)."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        if self._progress is None:
            return
        with self._lock:  # so that the counts come in order
            self._done += nbytes
            self._progress(self._done, self._total)


def upload(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    dest_uri: str,
    max_in_flight: int = 16,
    progress: Progress | None = None,
    options: WriterOptions | None = None,
    **settings: Any,
) -> list[str]:
    """Uploads files, and returns the URIs of the objects.

    ``paths`` is a path, a pattern (``*``, ``?``, ``[…]``, ``**``) or several of them; a folder stands for all files
    below it, without links to folders and, with a warning in the log, without what is no file.  For the path of one
    file a ``dest_uri`` that does not end in ``/`` is the object's name.  Otherwise, and always for a pattern or several
    paths, each file goes below it, under its name, its path in the folder, or its path from the pattern's first
    wildcard on.  Up to ``max_in_flight`` files are on their way at once.  ``progress(done, total)`` is told bytes.
    Options or settings are those of `open_writer`.

    A pattern that matches nothing raises NotFoundError, two files of one name InvalidInputError, and what may not be
    read PermissionDeniedError, before anything is sent.  When one fails, no more are begun and the first failure is
    raised; what is stored stays.
    """
    chosen = writer_options(options, settings).snapshot()
    targets = _targets(paths, parse_uri(dest_uri), chosen)
    files = store_for(Uri("file", "", "/"))
    sources = {target: Uri("file", "", os.path.abspath(path)) for target, path in targets.items()}
    count = _Count(progress, sum(files.stat(source)["size"] for source in sources.values()))
    stored: dict[Uri, str] = {}

    def send(item: tuple[Uri, Uri]) -> None:
        target, source_uri = item
        source = files.open(source_uri)
        try:
            stored[target] = _pass_on(source, str(source_uri), target, chosen, count)
        finally:
            source.close()

    for_each(sources.items(), send, threads_for(max_in_flight))
    return [stored[target] for target in targets]


def _targets(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], dest: Uri, options: WriterOptions
) -> dict[Uri, str]:
    """The objects and the files that become them; how they are stored, as ``.zst`` perhaps, is yet to come."""
    found: list[tuple[str, str]] = []
    if isinstance(paths, (str, os.PathLike)):
        path = os.fspath(paths)
        found += _readable_files(path)
        # Not for a pattern that matches one file today, and two tomorrow.
        if dest.key and not dest.key.endswith("/") and os.path.lexists(path) and not os.path.isdir(path):
            return {dest: path}
    else:
        for each in paths:
            found += _readable_files(os.fspath(each))
    targets: dict[Uri, str] = {}
    taken: dict[Uri, str] = {}
    for path, name in found:
        stored = dest.below(options.stored_name(name))
        if stored in taken:
            raise InvalidInputError(f"upload {path}: {stored} is also the target of {taken[stored]}", uri=str(stored))
        taken[stored] = targets[dest.below(name)] = path
    return targets


def _readable_files(pattern: str) -> list[tuple[str, str]]:
    """The same as `_files`.  What may not be read is an error before anything is sent."""
    try:
        found = list(_files(pattern))
        for path, _ in found:
            _check_access(path, os.R_OK)
        return found
    except OSError as error:
        if isinstance(error, S3dlioError):
            raise
        raise_status(-(error.errno or errno.EIO), "upload", str(error.filename))


def _check_access(path: str, mode: int) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        os.stat(path)  # which may know better why
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _files(pattern: str) -> Iterator[tuple[str, str]]:
    """The files of a path or pattern, each with the name that it gets."""
    if os.path.lexists(pattern):
        base = pattern if os.path.isdir(pattern) else os.path.dirname(pattern)
        matches = [pattern]
    else:
        if "://" in pattern:
            raise InvalidInputError(f"upload {pattern}: a path is needed, not a URI", operation="upload", uri=pattern)
        base = _fixed_part(pattern)
        _check_folders(pattern, base)
        matches = [path for path in sorted(glob.glob(pattern, recursive=True)) if not _is_behind_link(path, base)]
    if not matches:
        raise NotFoundError(f"upload {pattern}: there is no such file", operation="upload", uri=pattern)
    found: dict[str, str] = {}  # by name, since `**` matches folders and also what is in them
    for path in matches:
        for file in _walk(path) if os.path.isdir(path) else (path,):
            found.setdefault(os.path.relpath(file, base or "."), file)
    yield from ((file, name) for name, file in found.items())


def _check_folders(pattern: str, base: str) -> None:
    """In a folder that may not be read a pattern matches nothing, and glob says nothing of it."""
    parts = pattern.split("/")
    for number, part in enumerate(parts[1:], 1):
        mode = os.R_OK | os.X_OK if glob.has_magic(part) else os.X_OK
        for folder in glob.glob("/".join(parts[:number]) + "/", recursive=True):
            if not _is_behind_link(folder + part, base):
                _check_access(folder, mode)


def _fixed_part(pattern: str) -> str:
    """The folder that a pattern begins with."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part) or number == len(parts) - 1)
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")


def _is_behind_link(path: str, base: str) -> bool:
    """Whether a link to a folder leads there from the base: it may lead in a circle."""
    folder = os.path.dirname(path.rstrip("/"))
    while len(folder) > len(base):
        if os.path.islink(folder):
            return True
        folder = os.path.dirname(folder)
    return False


def _walk(top: str) -> Iterator[str]:
    """The files below a folder.  One that may not be read is an error: nothing is left out unsaid."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, folders, names in os.walk(top, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if _is_file(path):
                yield path
            else:
                logger.warning("upload %s: left out, as it is no file", path)


def _is_file(path: str) -> bool:
    try:
        return S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link that leads nowhere
            return False
        raise


def download(
    uri: str, dest_dir: str | os.PathLike[str], max_in_flight: int = 16, progress: Progress | None = None
) -> list[str]:
    """Downloads an object, or all objects below a prefix, into a folder, and returns the paths of the files.

    An object goes to its last name, what is below a prefix to its path from there.  Each file appears when it is
    complete and durable; what was there before stays until then.  A name that would lead out of the folder, or that no
    file can have (nothing, ``.`` or ``..`` between slashes), raises InvalidInputError before anything is written, and
    so do two that cannot be files both (``a`` and ``a/b``).
    ``max_in_flight`` and ``progress`` are those of `upload`.

    Raises NotFoundError where there is neither.
    """
    parsed = parse_uri(uri)
    _check_folder(os.fspath(dest_dir))
    store = store_for(parsed)
    found = list(store.list(parsed, recursive=True))
    if not found:
        raise NotFoundError(f"download {uri}: there is no such object or prefix", operation="download", uri=uri)
    folder = parsed.key if parsed.key.endswith("/") or not parsed.key else parsed.key + "/"
    targets: dict[str, Uri] = {}
    for each in found:
        name = each.key.rpartition("/")[2] if each.key == parsed.key else each.key[len(folder) :]
        if each.key.endswith("/"):
            continue  # what some programs leave for an empty folder
        path = _path_in(os.path.abspath(os.fspath(dest_dir)), name, each)
        if path in targets:
            raise InvalidInputError(f"download {each}: {path} is also the target of {targets[path]}", uri=str(each))
        targets[path] = each
    _check_no_file_is_a_folder(targets)
    total = sum(store.stat(each)["size"] for each in targets.values()) if progress is not None else 0
    count = _Count(progress, total)

    def fetch(item: tuple[str, Uri]) -> None:
        path, each = item
        source = store.open(each)
        try:
            _pass_on(source, str(each), Uri("file", "", path), WriterOptions(), count)
        finally:
            source.close()

    for_each(targets.items(), fetch, threads_for(max_in_flight))
    return list(targets)


def _check_no_file_is_a_folder(targets: dict[str, Uri]) -> None:
    """Of objects ``a`` and ``a/b`` only one can become a file."""
    folders = {}
    for path, uri in targets.items():
        while (path := os.path.dirname(path)) not in folders and path != "/":
            folders[path] = uri
    for path in folders.keys() & targets.keys():
        text = f"download {targets[path]}: {path} would have to be a file, and the folder of {folders[path]}"
        raise InvalidInputError(text, uri=str(targets[path]))


def _check_folder(path: str | bytes) -> None:
    """Whether this may be, or become, the folder of downloads."""
    if isinstance(path, bytes) or "://" in path:
        raise InvalidInputError(f"download: the folder must be a path, not {path!r}", operation="download")
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidInputError(f"download: {path} is no folder", operation="download")


def _path_in(folder: str, name: str, uri: Uri) -> str:
    """The path of a name in a folder, if it stays in there."""
    parts = name.split("/")
    if name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(f"download {uri}: {name!r} is no name of a file below the folder", uri=str(uri))
    path = os.path.join(folder, *parts)
    # A link in the folder may lead elsewhere.
    if os.path.commonpath([os.path.realpath(path), os.path.realpath(folder)]) != os.path.realpath(folder):
        raise InvalidInputError(f"download {uri}: a link leads from {path} out of the folder", uri=str(uri))
    return path


def copy(src_uri: str, dest_uri: str, options: WriterOptions | None = None, **settings: Any) -> str:
    """Copies an object, within a store or between two, and returns the URI of the new one.  Options or settings are
    those of `open_writer`.

    Within S3 the store itself does it, for objects of up to 5 GiB, and within an account of Azure; else the bytes go
    through this process, in bounded memory.  Raises InvalidInputError for a copy of an object to where it is.
    """
    source_uri, target = parse_uri(src_uri), parse_uri(dest_uri)
    chosen = writer_options(options, settings).snapshot()
    store = store_for(source_uri)
    if is_within_store(source_uri, target, chosen) and store.copy(source_uri, target):
        return str(target)
    source = store.open(source_uri)
    try:
        return _pass_on(source, src_uri, target, chosen, _Count(None, 0))
    finally:
        source.close()


def is_within_store(source: Uri, target: Uri, options: WriterOptions) -> bool:
    """Whether a copy stays in one store and changes nothing, so that the store may know how to do it.  Raises
    InvalidInputError where it would be one to the same place, which S3 refuses, and others take for an overwrite."""
    if options.compression is not None or options.content_type is not None:
        return False
    if source == target:
        raise InvalidInputError(f"copy {source}: it is to be copied onto itself", operation="copy", uri=str(source))
    return source.scheme == target.scheme


def _pass_on(source: Source, name: str, target: Uri, options: WriterOptions, count: _Count) -> str:
    """Streams an object through memory of a fixed size."""
    size = source.size
    buffer = bytearray(min(_PIECE, max(size, 1)))
    view, data = memoryview(buffer), pointer(buffer)
    with ObjectWriter(target, options) as writer:
        done = 0
        while done < size:
            _cancel.check()
            nbytes = source.readinto(done, data)
            if nbytes == 0:
                raise StorageError(f"read {name}: it ended after {done} of {size} bytes", operation="read", uri=name)
            writer.write_chunk(view[:nbytes])
            done += nbytes
            count.add(nbytes)
        if not source.can_have(writer.stats().crc32c):
            raise CorruptDataError(
                f"read {name}: the bytes that came are not those of its checksum", operation="read", uri=name
            )
    return writer.uri
