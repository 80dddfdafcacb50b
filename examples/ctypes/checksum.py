"""Says the CRC32C of files, with libs3dlio and Python's own ctypes: checksum.py FILE...

`libs3dlio.so.0` is searched where the system's loader does; LD_LIBRARY_PATH leads it elsewhere.
"""

import ctypes
import os
import sys

DIRECT_PREFER = 1  # enum s3dlio_direct
ROOM_NBYTES = 8 << 20


class ReaderOptions(ctypes.Structure):
    """struct s3dlio_reader_options"""

    _fields_ = (
        ("struct_nbytes", ctypes.c_size_t),
        ("block_nbytes", ctypes.c_size_t),
        ("in_flight", ctypes.c_uint),
        ("direct", ctypes.c_int),
        ("slice_ms", ctypes.c_int),
        ("timeout_ms", ctypes.c_int),
    )


library = ctypes.CDLL("libs3dlio.so.0")  # a call releases the GIL
library.s3dlio_status_text.restype = ctypes.c_char_p
library.s3dlio_status_text.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
library.s3dlio_buffer_alloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
library.s3dlio_buffer_free.restype = None
library.s3dlio_buffer_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
library.s3dlio_crc32c_combine.restype = ctypes.c_uint32
library.s3dlio_crc32c_combine.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64]
library.s3dlio_reader_open.argtypes = [
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_char_p,
    ctypes.POINTER(ReaderOptions),
]
library.s3dlio_reader_read.restype = ctypes.c_int64
library.s3dlio_reader_read.argtypes = [
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_uint32),
]
library.s3dlio_reader_free.restype = None
library.s3dlio_reader_free.argtypes = [ctypes.c_void_p]


def check(result: int, what: str) -> int:
    if result < 0:
        text = library.s3dlio_status_text(result, ctypes.create_string_buffer(128), 128)
        raise OSError(f"{what}: {text.decode()}")
    return result


def checksum(path: str, room: ctypes.c_void_p) -> tuple[int, int]:
    """The CRC32C of a file and its size, read past the page cache where that can be had."""
    reader = ctypes.c_void_p()
    options = ReaderOptions(struct_nbytes=ctypes.sizeof(ReaderOptions), direct=DIRECT_PREFER)
    check(library.s3dlio_reader_open(ctypes.byref(reader), os.fsencode(path), ctypes.byref(options)), path)
    try:
        crc, offset, part = 0, 0, ctypes.c_uint32()
        while nbytes := check(library.s3dlio_reader_read(reader, room, ROOM_NBYTES, offset, ctypes.byref(part)), path):
            crc = library.s3dlio_crc32c_combine(crc, part, nbytes)
            offset += nbytes
        return crc, offset
    finally:
        library.s3dlio_reader_free(reader)


def main() -> None:
    room = ctypes.c_void_p()
    check(library.s3dlio_buffer_alloc(ctypes.byref(room), ROOM_NBYTES), "buffer")
    try:
        for path in sys.argv[1:]:
            crc, nbytes = checksum(path, room)
            print(f"crc32c:{crc:08x} {nbytes} bytes {path}")
    except OSError as error:
        sys.exit(f"checksum.py: {error}")
    finally:
        library.s3dlio_buffer_free(room, ROOM_NBYTES)


if __name__ == "__main__":
    main()
