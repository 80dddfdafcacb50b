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


def test_memory_of_a_failed_call_is_let_go(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    # The collector crashed on a memoryview in garbage that our pointer to it was part of, after a failure that kept its
    # own traceback.
    code = """
import gc, s3dlio
from s3dlio._stores import memory

class Failing:
    size = 1 << 20

    def readinto(self, start, data):
        try:
            raise s3dlio.StorageError("planned")
        except s3dlio.StorageError as error:
            self.failure = error
        raise self.failure

    def close(self):
        pass

memory.MemoryStore.open = lambda self, uri: Failing()
for decompress in (False, True):
    try:
        s3dlio.open_reader("memory://a/b", decompress=decompress).readinto(memoryview(bytearray(100_000)))
    except s3dlio.StorageError:
        pass
    gc.collect()
    gc.collect()
print("good")
"""
    assert run_python(code).stdout == "good\n"


def test_memory_of_a_failed_put_is_let_go(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = """
import gc, s3dlio

def fail(call):
    data = memoryview(bytearray(1 << 20))
    try:
        call(data)
    except s3dlio.S3dlioError as error:
        keep = error  # a cycle through this frame

def write(data):
    with s3dlio.open_writer("file:///proc/no/such") as writer:
        writer.write_chunk(data)

s3dlio.configure_s3(endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b", retries=0)
for call in (write, lambda data: s3dlio.put("file:///proc/no/such", data), lambda data: s3dlio.put("s3://abc/d", data)):
    fail(call)
    gc.collect()
    gc.collect()
print("good")
"""
    assert run_python(code).stdout == "good\n"
