"""Turns the public headers into the C source of the compiled module.

Usage: build_ffi.py OUTPUT.c

What stands between "cffi: begin" and "cffi: end" in csrc/include/s3dlio/ is what Python sees; nothing is declared here.
"""

import re
import sys
from pathlib import Path

import cffi

INCLUDE = Path(__file__).parent / "csrc" / "include" / "s3dlio"


def declarations() -> str:
    """The marked parts of the headers, in the order in which s3dlio.h includes them."""
    order = re.findall(r'#include "s3dlio/(.+)"', (INCLUDE / "s3dlio.h").read_text())
    marked = re.compile(r"/\* cffi: begin \*/(.*)/\* cffi: end \*/", re.DOTALL)
    parts = [part for name in order for part in marked.findall((INCLUDE / name).read_text())]
    return "".join(parts).replace("S3DLIO_API ", "")


ffi = cffi.FFI()
ffi.cdef(declarations())
ffi.set_source("s3dlio._libs3dlio", '#include "s3dlio/s3dlio.h"')

if __name__ == "__main__":
    ffi.emit_c_code(sys.argv[1])
