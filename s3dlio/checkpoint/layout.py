"""What a checkpoint store consists of: names, manifests and the pointer, as text.  Nothing here touches a store.

    shards/ckpt-<step>-<timestamp>/rank-<r>.bin[.zst]    the bytes of one rank
    manifests/ckpt-<step>-<timestamp>.json               what makes shards a checkpoint
    latest.json                                          which manifest is the newest, a hint

docs/checkpoint.md says what is in them.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from s3dlio._checksum import checksum_text, crc32c
from s3dlio._errors import CorruptDataError, InvalidInputError

FORMAT_VERSION = 1

SHARDS, MANIFESTS, LATEST = "shards/", "manifests/", "latest.json"

# A shard has a checksum for each so many bytes that came in, so that damage can be placed.
PIECE = 64 << 20

# The numbers of ranks have ten digits at most.
MAX_WORLD_SIZE = 10**10

# The shape that manifests of others have in its first part: UTC, and for ours nanoseconds and what makes it unique.
_TIMESTAMP = r"\d{8}-\d{6}(?:-\d{9}-[0-9a-f]{8})?"
_NAME = re.compile(rf"ckpt-(\d{{1,20}})-({_TIMESTAMP})", re.ASCII)
_SHARD_KEY = re.compile(
    rf"shards/(?:[A-Za-z0-9]+/)*ckpt-(\d{{1,20}})-({_TIMESTAMP})/rank-(\d{{1,10}})\.bin(\.zst)?", re.ASCII
)
_CHECKSUM = re.compile(r"crc32c:[0-9a-f]{8}")
_PIECE = re.compile(r"(\d{1,20}):([0-9a-f]{8})", re.ASCII)

# How deep metadata may be, and with it a manifest: a parser goes as deep as its caller leaves room on the stack.
_MAX_METADATA_DEPTH = 100
_MAX_DEPTH = _MAX_METADATA_DEPTH + 10

# A bracket of JSON, or a whole string, perhaps without its end.
_BRACKET = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+"?', re.DOTALL)

# The last field of each document, over all of its bytes with zeros in this place.
_SEAL = re.compile(rb'"document_checksum": "crc32c:([0-9a-f]{8})"\n\}\n\Z')
_ZEROS = "00000000"


# Of nanoseconds since 1970: the moment after a later one might have no name.
_END = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000_000


@dataclass(frozen=True, order=True)
class Name:
    """The name of a checkpoint.  Names are in the order in which they were given; of one moment, in any."""

    timestamp: str
    step: int

    def __str__(self) -> str:
        return f"ckpt-{self.step}-{self.timestamp}"

    @property
    def manifest_key(self) -> str:
        return f"{MANIFESTS}{self}.json"

    def shard_key(self, rank: int) -> str:
        return f"{SHARDS}{self}/rank-{rank}.bin"

    @property
    def moment(self) -> int:
        """Nanoseconds since 1970, or 0 for what is no moment."""
        day, second, *rest = self.timestamp.split("-")
        try:
            whole = int(datetime.strptime(day + second, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
        except ValueError:
            return 0
        return whole * 1_000_000_000 + (int(rest[0]) if rest else 0)


def new_name(step: int, after: int = 0) -> Name:
    """A name that nobody else has, of this moment, but later than ``after``, in nanoseconds."""
    moment = max(time.time_ns(), after + 1)
    text = datetime.fromtimestamp(moment // 1_000_000_000, UTC).strftime("%Y%m%d-%H%M%S")
    return Name(f"{text}-{moment % 1_000_000_000:09d}-{secrets.token_hex(4)}", step)


def parse_name(text: str) -> Name | None:
    """The name ``ckpt-<step>-<timestamp>``, if it is one: not '007' for a step, and no thirteenth month."""
    match = _NAME.fullmatch(text)
    name = Name(match[2], int(match[1])) if match else None
    return name if name and 0 < name.moment < _END and str(name) == text else None


def parse_manifest_key(key: str) -> Name | None:
    """The name of a checkpoint whose manifest has this key, if one has."""
    if not (key.startswith(MANIFESTS) and key.endswith(".json")):
        return None
    return parse_name(key[len(MANIFESTS) : -len(".json")])


def split_shard_key(key: str) -> tuple[str, str | None]:
    """The store's key and the shard's below it, if it is that of a shard."""
    # The last one: a store may itself lie in a folder of this name.
    start = key.rfind("/" + SHARDS) + 1
    return (key[:start], key[start:]) if _SHARD_KEY.fullmatch(key, start) else (key, None)


@dataclass(frozen=True)
class Piece:
    """A part of the stored bytes, up to ``end``, and its CRC32C."""

    end: int
    crc32c: int


@dataclass(frozen=True)
class Shard:
    """The record of a shard, as far as it is needed to read it.  ``size`` counts stored bytes; ``raw_size`` and
    ``raw_checksum`` are those of what they are the compressed form of, and without compression the same."""

    rank: int
    key: str
    size: int
    checksum: str
    raw_size: int | None
    raw_checksum: str | None
    pieces: tuple[Piece, ...]
    etag: str

    @property
    def step(self) -> int:
        match = _SHARD_KEY.fullmatch(self.key)
        assert match is not None
        return int(match[1])

    @property
    def is_compressed(self) -> bool:
        return self.key.endswith(".zst")

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Begin, end and CRC32C of each piece."""
        begin = 0
        for piece in self.pieces or (Piece(self.size, int(self.checksum[-8:], 16)),):
            yield begin, piece.end, piece.crc32c
            begin = piece.end

    def record(self) -> dict[str, Any]:
        """The same as JSON has it."""
        record: dict[str, Any] = {
            "rank": self.rank,
            "key": self.key,
            "size": self.size,
            "etag": self.etag,
            "checksum": self.checksum,
            "raw_size": self.raw_size,
            "raw_checksum": self.raw_checksum,
        }
        if len(self.pieces) > 1:
            record["pieces"] = [f"{piece.end}:{piece.crc32c:08x}" for piece in self.pieces]
        return record


def parse_shard(record: object) -> Shard:
    """The shard of a record.  Raises InvalidInputError that says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise InvalidInputError(f"a shard's record must be a dict, not {type(record).__name__}")
    key = record.get("key")
    match = _SHARD_KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise InvalidInputError(f"{key!r} is no key of a shard")
    rank = _number(record, "rank", key)
    if rank != int(match[3]):
        raise InvalidInputError(f"{key} is not of rank {rank}")
    size, checksum = _number(record, "size", key), _checksum(record.get("checksum"), key)
    # Records of others may say nothing of the raw bytes.
    raw_size = None if record.get("raw_size") is None else _number(record, "raw_size", key)
    raw_checksum = None if record.get("raw_checksum") is None else _checksum(record["raw_checksum"], key)
    if match[4] is None:
        if raw_size not in (None, size) or raw_checksum not in (None, checksum):
            raise InvalidInputError(f"{key} is not compressed, and has another raw size or checksum")
        raw_size, raw_checksum = size, checksum
    return Shard(
        rank=rank,
        key=str(key),
        size=size,
        checksum=checksum,
        raw_size=raw_size,
        raw_checksum=raw_checksum,
        pieces=_pieces(record.get("pieces"), size, key),
        etag=str(record.get("etag", "")),
    )


def _number(record: Mapping[str, object], name: str, key: object) -> int:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InvalidInputError(f"{key}: {name} must be a whole number, not {value!r}")
    return value


def _checksum(value: object, key: object) -> str:
    if not isinstance(value, str) or not _CHECKSUM.fullmatch(value):
        raise InvalidInputError(f"{key}: a checksum must be like 'crc32c:c99465aa', not {value!r}")
    return value


def _pieces(value: object, size: int, key: object) -> tuple[Piece, ...]:
    if value is None:
        return ()
    pieces: list[Piece] = []
    for text in value if isinstance(value, list) else [value]:
        match = _PIECE.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1]) <= (pieces[-1].end if pieces else 0):
            raise InvalidInputError(f"{key}: {text!r} is not the end and checksum of a further piece")
        pieces.append(Piece(int(match[1]), int(match[2], 16)))
    if not pieces or pieces[-1].end != size:
        raise InvalidInputError(f"{key}: its pieces do not end where it does")
    return tuple(pieces)


def parse_shards(manifest: Mapping[str, Any]) -> list[Shard]:
    """The shards of a manifest, in the order of their ranks; none is missing and none is there twice.

    Raises InvalidInputError that names the ranks.
    """
    records = manifest.get("shards")
    if not isinstance(records, Sequence) or isinstance(records, (str, bytes)):
        raise InvalidInputError(f"the shards must be a list of records, not {type(records).__name__}")
    world_size = _number(manifest, "world_size", "the manifest")
    shards = sorted((parse_shard(record) for record in records), key=lambda shard: shard.rank)
    ranks = [shard.rank for shard in shards]
    doubled = sorted({rank for rank, after in pairwise(ranks) if rank == after})
    if doubled:
        raise InvalidInputError(f"{_ranks(doubled)} more than once")
    if above := [rank for rank in ranks if rank >= world_size]:
        raise InvalidInputError(f"{_ranks(above)} in a world of {world_size}")
    if len(ranks) < world_size:
        have = set(ranks)
        few = [rank for rank in range(min(world_size, len(ranks) + 100)) if rank not in have]
        raise InvalidInputError(f"{_ranks(few)} missing: {len(ranks)} of {world_size} shards are there")
    return shards


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:10])) + (", …" if len(ranks) > 10 else "")
    return f"rank {shown} is" if len(ranks) == 1 else f"ranks {shown} are"


def new_manifest(
    step: int, epoch: int, framework: str, shards: Sequence[Mapping[str, Any]], world_size: int, user_meta: Any
) -> dict[str, Any]:
    """The manifest of a complete checkpoint.  The records' further fields stay."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "framework": framework,
        "global_step": step,
        "epoch": epoch,
        "wall_time": datetime.now(UTC).isoformat(),
        "world_size": world_size,
        "shards": list(shards),
        "status": "complete",
        "user_meta": user_meta,
    }
    for shard in parse_shards(manifest):
        if shard.step != step:
            raise InvalidInputError(f"{shard.key} is of step {shard.step}, not {step}")
    manifest["shards"] = sorted(map(dict, shards), key=lambda record: record["rank"])
    return manifest


def parse_manifest(data: bytes, name: Name) -> dict[str, Any]:
    """Takes a manifest apart.  Raises CorruptDataError for what is none, or is damaged."""
    manifest = open_document(data, has_seal=len(name.timestamp) > len("20260101-000000"))
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptDataError(f"format_version is {version!r}, and {FORMAT_VERSION} can be read")
    try:
        if _number(manifest, "global_step", name) != name.step:
            raise InvalidInputError(f"it is of step {manifest['global_step']}")
        _number(manifest, "epoch", name)
        _number(manifest, "world_size", name)
        if is_complete(manifest):
            parse_shards(manifest)
    except InvalidInputError as error:
        raise CorruptDataError(str(error)) from None
    return manifest


def is_complete(manifest: Mapping[str, Any]) -> bool:
    return manifest.get("status") == "complete"


def shard_keys(manifest: Mapping[str, Any]) -> set[str]:
    """The keys of its shards, also of one that is not complete, which may have anything there."""
    records = manifest.get("shards")
    keys = [record.get("key") for record in records if isinstance(record, dict)] if isinstance(records, list) else []
    return {key for key in keys if isinstance(key, str) and _SHARD_KEY.fullmatch(key)}


def shard_folders(manifest: Mapping[str, Any]) -> set[str]:
    return {key.rpartition("/")[0] + "/" for key in shard_keys(manifest)}


def pointer_document(name: Name | None) -> bytes:
    """What `latest.json` holds."""
    if name is None:
        return seal({"manifest_key": None})
    return seal({"manifest_key": name.manifest_key, "global_step": name.step, "ts": name.timestamp})


def parse_pointer(data: bytes) -> Name | None:
    """The checkpoint that `latest.json` names, or None if it names none or is damaged."""
    try:
        key = open_document(data, has_seal=False).get("manifest_key")
    except CorruptDataError:
        return None
    return parse_manifest_key(key) if isinstance(key, str) else None


def seal(document: dict[str, Any]) -> bytes:
    """The text of a document with its checksum added as the last field."""
    data = json.dumps(document | {"document_checksum": "crc32c:" + _ZEROS}, indent=2).encode() + b"\n"
    ending = data[-len('"\n}\n') :]
    return data[: -len(_ZEROS) - len(ending)] + b"%08x" % crc32c(data) + ending


def open_document(data: bytes, has_seal: bool) -> dict[str, Any]:
    """The document of a text, if it is what was written."""
    match = _SEAL.search(data)
    if match:
        expected = crc32c(data[: match.start(1)] + _ZEROS.encode() + data[match.end(1) :])
        if int(match[1], 16) != expected:
            raise CorruptDataError(
                f"its checksum is {checksum_text(expected)}, and should be crc32c:{match[1].decode()}"
            )
    elif has_seal:
        raise CorruptDataError("it does not end with its checksum")
    try:
        document = json.loads(data)
    except RecursionError:
        if _depth_of(data) <= _MAX_DEPTH:
            raise  # the caller's own, who is as deep himself
        raise CorruptDataError("it is nested too deeply") from None
    except ValueError as error:
        raise CorruptDataError(f"it is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptDataError("it is no JSON object")
    document.pop("document_checksum", None)
    return document


def check_depth(metadata: Any) -> None:
    """Raises InvalidInputError for what a reader might not be able to take apart."""
    level = [metadata]
    for _ in range(_MAX_METADATA_DEPTH + 1):
        holders = [each for each in level if isinstance(each, (dict, list, tuple))]
        if not holders:
            return
        parts = (part for each in holders for part in (each.values() if isinstance(each, dict) else each))
        level = [*{id(part): part for part in parts}.values()]
    raise InvalidInputError(f"metadata is nested more than {_MAX_METADATA_DEPTH} times")


def _depth_of(data: bytes) -> int:
    """How deeply a text of JSON is nested, as far as its brackets tell."""
    depth = deepest = 0
    for match in _BRACKET.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        deepest = max(deepest, depth)
    return deepest
