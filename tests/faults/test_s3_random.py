"""Faults at random, in everything that is sent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from proxy import Proxy
from s3_cases import TO_ALL, TO_BODIES, TO_CONTENTS
from s3_work import MIB, PART, WRITES, files_in

import s3dlio

# Nothing that a server lies about, and no stall: there is one where a bit flips in a length.
KINDS = tuple(kind for kind in TO_BODIES + TO_CONTENTS + TO_ALL if not kind.startswith("stall"))
SIZES = (0, 1, 1000, 100_000, MIB, PART, PART + 1, 2 * PART + 1)
# Whose answer tells which upload there is, or that there is none any more.
UNTOLD = ("CreateMultipartUpload", "AbortMultipartUpload")


def read_range(uri: str, choose: random.Random) -> tuple[int, bytes]:
    offset, length = choose.randrange(2 * PART), choose.randrange(1, 2 * MIB)
    return offset, s3dlio.get_range(uri, offset, length)


def read_whole(uri: str, folder: Path, choose: random.Random) -> bytes:
    how = choose.choice(("get", "get_range", "reader", "download"))
    if how == "get":
        return s3dlio.get(uri)
    if how == "get_range":
        return s3dlio.get_range(uri, 0)
    if how == "reader":
        with s3dlio.open_reader(uri) as reader:
            return reader.read()
    before = files_in(folder)
    try:
        (path,) = s3dlio.download(uri, folder)
    except s3dlio.S3dlioError:
        assert files_in(folder) == before, "a download that failed has left something"
        raise
    return Path(path).read_bytes()


class Schedule:
    """Writes and reads of some objects, with what may stand there."""

    def __init__(self, base: str, proxy: Proxy, folder: Path, seed: int) -> None:
        self._base = base
        self._proxy = proxy
        self._folder = folder
        self._choose = random.Random(seed)
        proxy.random = random.Random(seed + 1)
        self._known: dict[str, set[bytes]] = {}
        self._acknowledged: set[str] = set()
        self.counts = Counter(stored=0, refused=0, read=0, unread=0)

    def write(self) -> None:
        uri = f"{self._base}/{self._choose.randrange(20)}"
        data = self._choose.randbytes(self._choose.choice(SIZES))
        how = WRITES[self._choose.choice([name for name in WRITES if name != "copy"])]
        try:
            how.do(uri, data, self._folder)
        except s3dlio.S3dlioError:
            self._known.setdefault(uri, set()).add(data)
            self.counts["refused"] += 1
        else:
            self._acknowledged.add(uri)
            self._known[uri] = {data}
            self.counts["stored"] += 1

    def read(self) -> None:
        uri = self._choose.choice(sorted(self._known))
        flips = self._proxy.fired["flip in response", "GetObject"]
        try:
            if self._choose.random() < 0.3:
                offset, got = read_range(uri, self._choose)
                flips = self._proxy.fired["flip in response", "GetObject"] - flips
                self._judge_range(uri, offset, got, flips)
            else:
                self._judge(uri, read_whole(uri, self._folder, self._choose))
        except s3dlio.NotFoundError:
            assert uri not in self._acknowledged, f"{uri}: lost"
            self.counts["unread"] += 1
        except s3dlio.S3dlioError:
            self.counts["unread"] += 1

    def _judge(self, uri: str, got: bytes) -> None:
        assert got in self._known[uri], f"{uri}: other bytes"
        self.counts["read"] += 1

    def _judge_range(self, uri: str, offset: int, got: bytes, flips: int) -> None:
        """A part of an object has no checksum (docs/s3.md): the bits that the proxy has flipped may be wrong."""
        parts = [data[offset : offset + len(got)] for data in self._known[uri]]
        wrong = min(wrong_bits(got, part) for part in parts)
        assert wrong <= flips, f"{uri}: other bytes"
        self.counts["read with flipped bits in a part" if wrong else "read"] += 1

    def check(self) -> None:
        for uri in self._acknowledged:
            assert s3dlio.get(uri) in self._known[uri], f"{uri}: lost"
        left = len(s3dlio.list_stale_uploads(f"{self._base}/"))
        untold = sum(count for (_, operation), count in self._proxy.fired.items() if operation in UNTOLD)
        assert left <= untold, f"{left} uploads are left open"


def wrong_bits(one: bytes, other: bytes) -> int:
    if len(one) != len(other):
        return 8 * max(len(one), len(other))
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


# awscrt says so on standard error where a header is no UTF-8, and the request fails and is sent again.
@pytest.mark.filterwarnings("ignore:.*_S3RequestCore:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(harness.effort(300, 3000))
def test_random_faults_lose_nothing_in_silence(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    seed = harness.new_seed()
    schedule = Schedule(f"{s3}/random", proxy, tmp_path, seed)
    through(proxy, 2.0)
    proxy.kinds, proxy.chance = KINDS, 0.05
    try:
        for _ in range(harness.effort(200, 1000)):
            schedule.write()
            schedule.read()
        proxy.chance = 0.0
        through(None)
        schedule.check()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    told = ", ".join(f"{count} {what}" for what, count in schedule.counts.items())
    faults = sum(proxy.fired.values())
    figure(f"s3 random faults: {told}, {faults} faults, 0 silent, seed {seed}")
    assert faults > 5


@pytest.mark.parametrize("kind", ["flip in request", "not stored"])
def test_client_without_checksums_is_caught_by_random_faults(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    """A planted fault."""
    schedule = Schedule(f"{s3}/random-planted", proxy, tmp_path, 1)
    through(proxy, 2.0)
    s3dlio.configure_s3(checksums=False, verify="none")
    proxy.kinds, proxy.chance = (kind,), 0.3
    with pytest.raises(AssertionError, match=r"other bytes|lost"):
        for _ in range(50):
            schedule.write()
            schedule.read()
        schedule.check()
