"""Tells compilers where the libs3dlio is that this package runs on.

cc stream.c -o stream $(python -m s3dlio.config --cflags --libs)
cmake -S . -B build -Ds3dlio_DIR="$(python -m s3dlio.config --cmakedir)"
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import sys
from pathlib import Path

from s3dlio._native import ffi, lib

__all__ = ["cmake_dir", "compile_flags", "link_flags"]


class _Place(ctypes.Structure):
    """What dladdr(3) tells."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library() -> Path:
    # This text lies within the library; the functions that cffi gives are its own.
    text = int(ffi.cast("uintptr_t", lib.s3dlio_version()))
    place = _Place()
    if not ctypes.CDLL(None).dladdr(ctypes.c_void_p(text), ctypes.byref(place)):
        raise FileNotFoundError("the dynamic loader does not know where libs3dlio is")
    path = Path(os.fsdecode(place.file)).absolute()
    # The loader may come by /lib, which leads to /usr/lib.  The name itself is that of the ABI, and a link as well.
    return path.parent.resolve() / path.name


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: are the development files of libs3dlio installed?")
    return path


def compile_flags() -> list[str]:
    """The options with which a compiler finds the headers."""
    # lib/ or lib/<architecture>/, in a wheel as anywhere.
    candidates = [parent / "include" for parent in _library().parent.parents]
    found = [include for include in candidates if (include / "s3dlio/s3dlio.h").exists()]
    return [f"-I{_existing((found or candidates)[0])}"]


def link_flags() -> list[str]:
    """The options with which a linker finds the library, and the program that was linked finds it again."""
    library = _library()
    # By the whole name, as a wheel cannot have the link that "-ls3dlio" looks for.
    return [f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", f"-l:{library.name}"]


def cmake_dir() -> Path:
    """The folder that ``find_package(s3dlio)`` takes as ``s3dlio_DIR``."""
    return _existing(_library().parent / "cmake/s3dlio")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m s3dlio.config", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cflags", action="store_true", help="options for the compiler")
    parser.add_argument("--libs", action="store_true", help="options for the linker")
    parser.add_argument("--cmakedir", action="store_true", help="folder for CMake, as s3dlio_DIR")
    asked = parser.parse_args(arguments)
    if not (asked.cflags or asked.libs or asked.cmakedir):
        parser.error("nothing was asked for")
    try:
        flags = (compile_flags() if asked.cflags else []) + (link_flags() if asked.libs else [])
        if flags:
            print(shlex.join(flags))
        if asked.cmakedir:
            print(cmake_dir())
    except FileNotFoundError as error:
        sys.exit(f"s3dlio.config: {error}")


if __name__ == "__main__":
    main()
