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


def frees(declared: str) -> tuple[str, str]:
    """For each s3dlio_x_free(struct s3dlio_x *) a s3dlio_x_free_at(struct s3dlio_x **), as prototypes and as C.

    cffi can call that as the destructor of the place where a handle will be put, without any Python in between that a
    signal could break off.
    """
    kinds = re.findall(r"^(s3dlio_\w+)_free\(struct \1 \*", declared, re.MULTILINE)
    prototypes = [f"void {kind}_free_at(struct {kind} **place)" for kind in kinds]
    bodies = [f"{{ {kind}_free(*place); }}" for kind in kinds]
    return (
        "".join(f"{prototype};\n" for prototype in prototypes),
        "".join(f"static {prototype} {body}\n" for prototype, body in zip(prototypes, bodies, strict=True)),
    )


ffi = cffi.FFI()
prototypes, definitions = frees(declarations())
ffi.cdef(declarations() + prototypes)
ffi.set_source("s3dlio._libs3dlio", f'#include "s3dlio/s3dlio.h"\n{definitions}')

if __name__ == "__main__":
    ffi.emit_c_code(sys.argv[1])
