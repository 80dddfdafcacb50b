from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import s3dlio
from s3dlio import _errors
from s3dlio._native import _KINDS, lib, raise_status

STATUS_H = Path(__file__).parent.parent / "csrc/include/s3dlio/status.h"


def test_every_code_of_the_header_has_an_error_and_a_text() -> None:
    codes = re.findall(r"(S3DLIO_E_\w+) = (-\d+)", STATUS_H.read_text())
    assert len(codes) >= 9
    for name, value in codes:
        assert getattr(lib, name) == int(value)
        assert int(value) in _KINDS, name
        with pytest.raises(_KINDS[int(value)]) as caught:
            raise_status(int(value), "write", "file:///x")
        assert "unknown code" not in str(caught.value)
        assert str(caught.value).startswith("write file:///x: ")


@pytest.mark.parametrize(
    ("number", "kind", "built_in"),
    [
        (errno.ENOENT, s3dlio.NotFoundError, FileNotFoundError),
        (errno.EACCES, s3dlio.PermissionDeniedError, PermissionError),
        (errno.EROFS, s3dlio.PermissionDeniedError, PermissionError),
        (errno.ETIMEDOUT, s3dlio.TimedOutError, TimeoutError),
        (errno.EISDIR, s3dlio.NotAnObjectError, IsADirectoryError),
        (errno.EINVAL, s3dlio.InvalidInputError, ValueError),
        (errno.ENOSPC, s3dlio.StorageError, OSError),
        (errno.EIO, s3dlio.StorageError, OSError),
        (errno.EDQUOT, s3dlio.StorageError, OSError),
    ],
)
def test_number_of_the_system_becomes_the_matching_error(
    number: int, kind: type[s3dlio.S3dlioError], built_in: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        raise_status(-number, "finalize", "file:///x")
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert isinstance(error, built_in)
    assert (error.errno, error.operation, error.uri) == (number, "finalize", "file:///x")
    assert str(error) == f"finalize file:///x: {os.strerror(number)}"


@pytest.mark.parametrize(
    "call", [s3dlio.get, s3dlio.stat, s3dlio.open_reader, lambda uri: s3dlio.get_range(uri, -1), s3dlio.create_bucket]
)
def test_name_of_several_lines_is_shown_on_one(call: Callable[[str], object]) -> None:
    # Whoever chose a name could forge a line of a log.
    uri = "memory://a/b\nCRITICAL root: forged\x00\u2028\udc80"
    with pytest.raises(s3dlio.S3dlioError) as caught:
        call(uri)
    assert caught.value.uri == uri
    assert r"b\nCRITICAL root: forged\x00\u2028\udc80" in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_name_of_several_lines_is_one_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "s3dlio")
    s3dlio.put("memory://a/b\nforged", b"x")
    assert [line for line in caplog.messages if r"put memory://a/b\nforged: 1 bytes" in line]
    s3dlio.delete("memory://a/b\nforged")


def test_every_error_survives_pickling() -> None:
    kinds = [kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, s3dlio.S3dlioError)]
    assert len(kinds) == 12
    for kind in kinds:
        error = kind("write file:///x: reason", operation="write", uri="file:///x", errno=5)
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error) == "write file:///x: reason"
        assert (copy.operation, copy.uri, copy.errno) == ("write", "file:///x", 5)


def test_tree_in_the_module_text_is_the_tree() -> None:
    drawn = re.findall(r"── (\w+) +([\w.]*)", _errors.__doc__ or "")
    for name, built_in in drawn:
        kind = getattr(_errors, name)
        assert issubclass(kind, s3dlio.S3dlioError)
        assert getattr(s3dlio, name) is kind
        if built_in[:1].isupper() or built_in.startswith("io."):
            assert built_in.removeprefix("io.") in [base.__name__ for base in kind.__bases__]
    assert len(drawn) == 11


# The collector of CPython before 3.12.7 crashed on a memoryview in garbage that a pointer of ours to it was part of: as
# with every failure that somebody keeps.
FAILURES = """
import asyncio, concurrent.futures, gc, io, tempfile
import s3dlio
from s3dlio import aio
from s3dlio._stores import memory

class Failing:
    size = 1 << 20

    def readinto(self, start, data):
        try:
            raise s3dlio.StorageError("planned")
        except s3dlio.StorageError as error:
            self.failure = error  # with a traceback that holds the caller's memory
        raise self.failure

    def close(self):
        pass

memory.MemoryStore.open = lambda self, uri: Failing()
s3dlio.configure_s3(endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b", retries=0)
FILE, S3, SIZE = "file:///proc/no/such", "s3://abc/d", 20 << 20

def read(decompress):
    return lambda data: s3dlio.open_reader("memory://a/b", decompress=decompress).readinto(data)

def write(uri):
    def work(data):
        with s3dlio.open_writer(uri) as writer:
            writer.write_chunk(data)
    return work

def write_parts(data):
    with s3dlio.MultipartUploadWriter("abc", "d") as writer:
        writer.write(data)

def fill_parts(data):
    with s3dlio.MultipartUploadWriter("abc", "d") as writer:
        while True:
            room = writer.reserve(SIZE)
            room[:] = data[:len(room)]
            writer.commit(len(room))

def in_threads(data):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(s3dlio.put, S3, data) for _ in range(2)]
        raise futures[0].exception()

def gathered(data):
    async def main():
        return await asyncio.gather(aio.put(S3, data), aio.put(FILE, data), return_exceptions=True)
    raise asyncio.run(main())[1]

def upload(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        s3dlio.upload(file.name, S3)

CALLS = [
    read(False), read(True), write(FILE), write(S3), write_parts, fill_parts, in_threads, gathered, upload,
    lambda data: s3dlio.put(FILE, data),
    lambda data: s3dlio.put(S3, data),
    lambda data: s3dlio.put(S3, data[:1000]),
    lambda data: s3dlio.put_many([(S3, data[:1000])] * 10),
    lambda data: s3dlio.put_many([(FILE, data)] * 10),
    lambda data: asyncio.run(aio.put(S3, data[:1000])),
    lambda data: asyncio.run(aio.put_many([(S3, data[:1000]), (FILE, data)])),
    lambda data: s3dlio.copy("memory://a/b", S3),
    lambda data: s3dlio.download("memory://a/b", "/proc/no/such"),
    lambda data: s3dlio.get_many(["memory://a/b", S3]),
]

def fail(call):
    data = memoryview(bytearray(SIZE))
    try:
        call(data)
    except Exception as error:
        keep = error  # a cycle through this frame
        return 1
    return 0

failed = 0
for call in CALLS:
    failed += fail(call)
    gc.collect()
    gc.collect()
assert failed == len(CALLS), f"{failed} of {len(CALLS)} failed"
print("good")
"""


def test_memory_of_a_failed_call_outlives_the_failure(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run_python(FAILURES).stdout == "good\n"
