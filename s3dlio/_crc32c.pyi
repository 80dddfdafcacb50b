# The compiled module cmake/python/_crc32c.c.
from typing_extensions import Buffer

def crc32c(buffer: Buffer, value: int = 0) -> int: ...
