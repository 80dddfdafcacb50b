"""What a network and a server may do to requests to Azure: the right bytes, or an error in bounded time, and nothing
torn."""

from __future__ import annotations

import random
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from urllib.parse import unquote

import harness
import pytest
import servers
from proxy import Fault, Proxy, wait_until

import s3dlio
from s3dlio._stores import azure as store

KIB = 1 << 10
BLOCK = 256 * KIB
OLD = b"what was there before"

TO_REQUESTS = ("reset in mid body", "flip in request")
TO_ANSWERS = (
    "500",
    "503 SlowDown",
    "200 with an error",
    "200 with nothing",
    "truncated head",
    "truncated body",
    "reset in response",
    "lost acknowledgement",
    "stall",
)


@pytest.fixture
def proxy(azure: str, azurite: servers.Server) -> Iterator[Proxy]:
    with Proxy(azurite.url) as between:
        s3dlio.configure_azure(
            endpoint_url=between.url, retries=3, backoff=0.02, stall_timeout=1.0, operation_timeout=20
        )
        yield between
        between.faults = []
        between.chance = 0.0
        servers.disconnect_azure()


def put(uri: str, data: bytes) -> None:
    s3dlio.put(uri, data)


def stream(uri: str, data: bytes) -> None:
    with s3dlio.open_writer(uri, buffer_size=BLOCK, in_flight=2) as writer:
        for start in range(0, len(data), 100_000):
            writer.write_chunk(data[start : start + 100_000])


WRITES: dict[str, tuple[Callable[[str, bytes], None], int, tuple[str, ...]]] = {
    "put": (put, 100_000, ("Put Blob",)),
    "stream of one block": (stream, 100_000, ("Put Blob", "Get Blob Properties")),
    "stream of three": (stream, 2 * BLOCK + 1000, ("Put Block", "Put Block List", "Get Blob Properties")),
}


def cases() -> Iterator[tuple[str, str, str, int]]:
    for name, (_, _, operations) in WRITES.items():
        for operation in operations:
            for kind in (TO_REQUESTS if operation.startswith("Put") else ()) + TO_ANSWERS:
                for times in (1, 1000):
                    yield name, operation, kind, times


def attempt(write: Callable[[str, bytes], None], uri: str, data: bytes) -> tuple[s3dlio.S3dlioError | None, float]:
    began = time.monotonic()
    try:
        write(uri, data)
    except s3dlio.S3dlioError as error:
        return error, time.monotonic() - began
    return None, time.monotonic() - began


def test_faults_of_writing_are_overcome_or_told(azure: str, proxy: Proxy, figure: Callable[[str], None]) -> None:
    counts = {"right": 0, "loud": 0, "stored although told otherwise": 0}
    for number, (name, operation, kind, times) in enumerate(cases()):
        write, size, _ = WRITES[name]
        case = f"{name}, {operation}: {kind} x {times}"
        uri = f"{azure}/faults/{number}"
        proxy.faults = []
        s3dlio.put(uri, OLD)
        data = random.Random(number).randbytes(size)
        fault = Fault(kind, operation, times)
        proxy.faults = [fault]
        error, seconds = attempt(write, uri, data)
        proxy.faults = []
        assert fault.fired > 0, f"{case}: has not fired"
        assert seconds < 15, f"{case}: took {seconds:.1f} s"
        stored = s3dlio.get(uri)
        assert stored in (OLD, data), f"{case}: torn"
        if error is None:
            assert stored == data, f"{case}: lost in silence"
            counts["right"] += 1
        else:
            assert times > 1, f"{case}: was not overcome: {error}"
            assert uri in str(error), f"{case}: {error}"
            # Of blocks several are sent at once.
            assert operation == "Put Block" or error.attempts == fault.fired, f"{case}: {error}"
            counts["stored although told otherwise" if stored == data else "loud"] += 1
    total = sum(counts.values())
    assert total >= 100
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    figure(f"azure faults of writing: {total} faults, {told}, 0 silent, 0 torn")


def test_faults_of_reading_are_overcome_or_told(
    azure: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    monkeypatch.setattr(store, "RANGE", 4 * BLOCK)
    data = random.Random(5).randbytes(3 * 4 * BLOCK + 12345)
    uri = f"{azure}/reads/a"
    s3dlio.put(uri, data)
    s3dlio.put(f"{azure}/reads/b", b"")
    reads: dict[str, tuple[Callable[[], object], object]] = {
        "Get Blob Properties": (lambda: s3dlio.get(uri), data),
        "Get Blob": (lambda: s3dlio.get(uri), data),
        "List Blobs": (lambda: s3dlio.list(f"{azure}/reads"), [uri, f"{azure}/reads/b"]),
    }
    right = loud = 0
    for operation, (read, expected) in reads.items():
        for kind in TO_ANSWERS:
            for times, skip in ((1, 0), (1, 1), (1000, 0)):
                if skip and operation == "Get Blob Properties":
                    continue
                case = f"{operation}: {kind} x {times} after {skip}"
                fault = Fault(kind, operation, times, skip)
                proxy.faults = [fault]
                began = time.monotonic()
                try:
                    got = read()
                except s3dlio.S3dlioError as error:
                    assert times > 1, f"{case}: was not overcome: {error}"
                    assert azure in str(error), case
                    loud += 1
                else:
                    assert got == expected, f"{case}: other bytes"
                    right += 1
                assert fault.fired > 0, f"{case}: has not fired"
                assert time.monotonic() - began < 20, f"{case}: took too long"
    figure(f"azure faults of reading: {right + loud} faults, {right} right, {loud} loud, 0 silent")


def test_lost_acknowledgements_of_the_rest_are_made_good(azure: str, proxy: Proxy) -> None:
    other = f"az://{servers.ACCOUNT}/lost-acknowledgements"

    def fault(operation: str) -> Fault:
        proxy.faults = [Fault("lost acknowledgement", operation)]
        return proxy.faults[0]

    created = fault("Create Container")
    s3dlio.create_bucket(other)
    for number in range(3):
        s3dlio.put(f"{other}/{number}", b"x")
    deleted = fault("Delete Blob")
    s3dlio.delete(f"{other}/0")
    batch = fault("Blob Batch")
    s3dlio.delete(other, recursive=True)
    assert s3dlio.list(other) == []
    gone = fault("Delete Container")
    s3dlio.delete_bucket(other)
    assert [each.fired for each in (created, deleted, batch, gone)] == [1, 1, 1, 1]


def test_commit_that_another_writer_replaced_is_told(azure: str, proxy: Proxy) -> None:
    # Its acknowledgement is lost, and before it is repeated another writer stores the blob.
    uri = f"{azure}/replaced"
    data = bytes(3 * BLOCK)
    s3dlio.configure_azure(backoff=2.0)
    writer = s3dlio.open_writer(uri, buffer_size=BLOCK)
    writer.write_chunk(data)
    proxy.faults = [Fault("lost acknowledgement", "Put Block List")]

    def overtake() -> None:
        deadline = time.monotonic() + 10
        while not proxy.faults[0].fired and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        s3dlio.put(uri, b"of another")

    thread = threading.Thread(target=overtake)
    thread.start()
    try:
        with pytest.raises(s3dlio.CorruptDataError, match="another writer has stored"):
            writer.finalize()
    finally:
        thread.join(20)
    assert s3dlio.get(uri) == b"of another"


def test_service_that_lies_is_found_out(azure: str, proxy: Proxy) -> None:
    for name in ("stream of one block", "stream of three"):
        write, size, _ = WRITES[name]
        uri = f"{azure}/lies/{size}"
        proxy.faults = [Fault("created nothing", "Put Blob" if name == "stream of one block" else "Put Block List")]
        error, _ = attempt(write, uri, bytes(size))
        assert proxy.faults[0].fired == 1
        assert isinstance(error, s3dlio.CorruptDataError), f"{name}: {error}"
        assert "although the service has acknowledged it" in str(error)
        assert not s3dlio.exists(uri)
    proxy.faults = [Fault("created nothing", "Put Blob", 2)]
    s3dlio.put(f"{azure}/lies/put", b"x")  # the answer was good
    with pytest.raises(s3dlio.CorruptDataError, match="not there"):
        s3dlio.put(f"{azure}/lies/put", b"x", verify="size")


def test_client_without_checksums_would_lose_in_silence(azure: str, proxy: Proxy) -> None:
    # The planted fault: else the others might prove nothing.
    s3dlio.configure_azure(checksums="none", verify="none")
    data = random.Random(3).randbytes(2 * BLOCK)
    for write, operation in ((put, "Put Blob"), (stream, "Put Block")):
        proxy.faults = [Fault("flip in request", operation)]
        write(f"{azure}/planted", data)
        assert proxy.faults[0].fired == 1
        assert s3dlio.get(f"{azure}/planted") != data
    proxy.faults = [Fault("created nothing", "Put Blob")]
    stream(f"{azure}/planted-too", data[:100])
    assert not s3dlio.exists(f"{azure}/planted-too")


@pytest.mark.parametrize("kind", ["md5", "crc64"])
def test_bytes_that_were_damaged_on_the_way_are_refused(azure: str, proxy: Proxy, kind: str) -> None:
    s3dlio.configure_azure(checksums=kind)
    for name, (write, size, operations) in WRITES.items():
        uri = f"{azure}/damaged/{kind}/{size}"
        for times in (1, 1000):
            s3dlio.put(uri, OLD)
            data = random.Random(times).randbytes(size)
            proxy.faults = [Fault("flip in request", operations[0], times)]
            error, _ = attempt(write, uri, data)
            assert proxy.faults.pop().fired >= 1
            if times == 1:
                assert error is None, f"{name}: {error}"
                assert s3dlio.get(uri) == data
            else:
                assert isinstance(error, s3dlio.CorruptDataError), f"{name}: {error}"
                assert kind == "md5" or error.code == "Crc64Mismatch"
                assert s3dlio.get(uri) == OLD


def test_deadline_holds_for_a_whole_operation(azure: str, proxy: Proxy) -> None:
    s3dlio.put(f"{azure}/deadline", b"x")
    s3dlio.configure_azure(operation_timeout=1.5, stall_timeout=0.5, retries=100)
    for kind in ("500", "stall"):
        for operation, call in (
            ("Get Blob Properties", lambda: s3dlio.stat(f"{azure}/deadline")),
            ("Put Blob", lambda: s3dlio.put(f"{azure}/deadline", b"y")),
            ("Put Block", lambda: stream(f"{azure}/deadline", bytes(3 * BLOCK))),
            ("Put Block List", lambda: stream(f"{azure}/deadline", bytes(3 * BLOCK))),
            ("List Blobs", lambda: s3dlio.list(azure)),
        ):
            proxy.faults = [Fault(kind, operation, 1000)]
            began = time.monotonic()
            with pytest.raises(s3dlio.S3dlioError):
                call()
            assert proxy.faults[0].fired > 1, operation
            assert time.monotonic() - began < 3.5, operation


def test_connections_close_although_the_log_keeps_a_bad_answer(
    azure: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    # urllib3's record of it held the pool, whose idle connections only the garbage collector closed.
    s3dlio.put(f"{azure}/bad-answer", b"x")
    # It ends somewhere within the name of a header.
    for at in range(40, 60):
        proxy.faults = [Fault("truncated head", "Get Blob Properties", at=at / 100)]
        assert s3dlio.stat(f"{azure}/bad-answer")["size"] == 1
    assert "Failed to parse headers" in caplog.text
    proxy.faults = []
    assert s3dlio.exists(f"{azure}/bad-answer")  # which leaves an idle connection
    assert proxy.connections() > 0
    servers.disconnect_azure()
    assert wait_until(lambda: proxy.connections() == 0, 5)


def test_signature_of_a_sas_is_shown_nowhere_whatever_goes_wrong(
    azure: str, azurite: servers.Server, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    # It is part of the target, which the errors and the log of urllib3 show.
    caplog.set_level(1)
    s3dlio.put(f"{azure}/secret", b"x")
    token = servers.sas("tests", read=True, write=True, list=True)
    signature = servers.signature(token)
    s3dlio.configure_azure(sas_token=token, retries=1, stall_timeout=0.2)
    calls = {
        "Get Blob Properties": lambda: s3dlio.stat(f"{azure}/secret"),
        "Get Blob": lambda: s3dlio.get(f"{azure}/secret"),
        "Put Blob": lambda: put(f"{azure}/secret", b"x"),
        "Put Block": lambda: stream(f"{azure}/secret", bytes(2 * BLOCK)),
        "List Blobs": lambda: s3dlio.list(azure),
    }
    seen = told = 0
    for operation, call in calls.items():
        for kind in (*TO_REQUESTS, *TO_ANSWERS, "nobody there"):
            proxy.faults = [Fault(kind, operation, 1000)]
            if kind == "nobody there":
                s3dlio.configure_azure(endpoint_url=f"http://127.0.0.1:{servers.free_ports(1)[0]}")
            try:
                call()
            except s3dlio.S3dlioError as error:
                told += 1
                shown = [*traceback.format_exception(error), *facts(error)]
                assert signature not in unquote("".join(shown)), f"{operation}: {kind}"
            s3dlio.configure_azure(endpoint_url=proxy.url)
            seen += caplog.text.count("sig=")
            assert signature not in unquote(caplog.text), f"{operation}: {kind}"
            caplog.clear()
    assert told >= 25
    assert seen >= 100  # else nothing that could show it was seen


def facts(error: BaseException) -> Iterator[str]:
    """What the attributes of an error say, and those of the errors behind it."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield repr(vars(each))
            todo += [*vars(each).values(), each.__cause__, each.__context__]


def test_ctrl_c_at_any_moment_leaves_a_client_that_works(
    azure: str, run_python: Callable[..., subprocess.CompletedProcess[str]], figure: Callable[[str], None]
) -> None:
    # Between two lines of urllib3's it left a lock held, for which the next request waited for ever.
    code = """
import random, signal, sys, threading, time, s3dlio

def strike(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

def stream():
    with s3dlio.open_writer(f"{base}/c", buffer_size=1 << 18) as writer:
        writer.write_chunk(bytes(1 << 20))

base, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s3dlio.put(f"{base}/a", b"x")
s3dlio.put(f"{base}/large", bytes(17 << 20))
works = [
    stream,
    lambda: s3dlio.get(f"{base}/a"),
    lambda: s3dlio.get(f"{base}/large"),
    lambda: s3dlio.put(f"{base}/b", b"x"),
    lambda: s3dlio.list(base),
    lambda: s3dlio.get_many([f"{base}/a"] * 5),
    lambda: s3dlio.put_many([(f"{base}/many/{number}", b"x") for number in range(5)]),
]
armed = False
signal.signal(signal.SIGALRM, strike)
sys.unraisablehook = lambda _: None  # what Python itself calls at any moment may be struck as well
choose = random.Random(seed)
interrupted, longest, other = 0, 0.0, []
seconds = dict.fromkeys(works, 0.05)
while interrupted < count:
    work = choose.choice(works)
    began, armed = time.monotonic(), True
    signal.setitimer(signal.ITIMER_REAL, choose.uniform(0.0001, seconds[work]))
    try:
        work()
    except KeyboardInterrupt:
        interrupted += 1
        longest = max(longest, time.monotonic() - began - seconds[work])
    except s3dlio.S3dlioError as error:
        other.append(str(error))
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds[work] = 0.9 * seconds[work] + 0.1 * min(1.0, time.monotonic() - began)
assert s3dlio.get(f"{base}/a") == b"x"
deadline = time.monotonic() + 10
while any(thread.name == "s3dlio-azure" for thread in threading.enumerate()):
    assert time.monotonic() < deadline, "a thread stays"
    time.sleep(0.01)
assert not other, other
print(f"{longest:.2f}")
"""
    count, seed = harness.effort(100, 300), harness.new_seed()
    longest = float(run_python(code, f"{azure}/interrupted", str(seed), str(count)).stdout)
    assert longest < 3
    figure(f"azure interrupts: {count} at random moments, 0 hung, the longest {longest:.2f} s, seed {seed}")


def test_random_faults_lose_nothing_in_silence(azure: str, proxy: Proxy, figure: Callable[[str], None]) -> None:
    seed = harness.new_seed()
    choose = random.Random(seed)
    proxy.random = random.Random(seed + 1)
    # What flips in an answer to a part of a blob nothing would find: the service keeps no checksum of it.
    proxy.kinds = tuple(kind for kind in TO_REQUESTS + TO_ANSWERS if kind != "stall")
    proxy.chance = 0.05
    counts = {"stored": 0, "refused": 0, "read": 0, "unread": 0}
    known: dict[str, set[bytes]] = {}
    acknowledged: set[str] = set()
    for _ in range(harness.effort(200, 1000)):
        uri = f"{azure}/random/{choose.randrange(20)}"
        size = choose.choice((0, 1, 1000, 100_000, BLOCK, BLOCK + 1, 4 * BLOCK + 1))
        data = choose.randbytes(size)
        error, _ = attempt(choose.choice((put, stream)), uri, data)
        if error is None:
            acknowledged.add(uri)
            known[uri] = {data}
            counts["stored"] += 1
        else:
            known.setdefault(uri, set()).add(data)
            counts["refused"] += 1
        target = choose.choice(sorted(known))
        try:
            got = s3dlio.get(target)
        except s3dlio.NotFoundError:
            assert target not in acknowledged, f"{target}: lost, seed {seed}"
            counts["unread"] += 1
            continue
        except s3dlio.S3dlioError:
            counts["unread"] += 1
            continue
        assert got in known[target], f"{target}: other bytes, seed {seed}"
        counts["read"] += 1
    proxy.chance = 0.0
    for target in acknowledged:
        assert s3dlio.get(target) in known[target], f"{target}: lost, seed {seed}"
    happened = proxy.fired.total()
    assert happened >= 20
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    figure(f"azure random faults: {happened} faults, {told}, 0 silent, seed {seed}")
