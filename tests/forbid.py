"""Runs a program in which io_uring's system calls fail: forbid.py ERRNO PROGRAM [ARGUMENT]..."""

from __future__ import annotations

import ctypes
import os
import struct
import sys


def forbid_uring(number: int) -> None:
    """From here on, and in every program that this process becomes or starts, system calls 425 to 427 fail."""
    # A seccomp filter (seccomp(2)): load the number of the call, compare, return an error or allow.
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (0x20, 0, 0, 0),
            (0x35, 0, 2, 425),
            (0x25, 1, 0, 427),
            (0x06, 0, 0, 0x00050000 | number),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HxxxxxxP", 5, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, description, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, a filter
    assert libc.syscall(425, 1, 0) == -1
    assert ctypes.get_errno() == number


if __name__ == "__main__":
    forbid_uring(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
