"""What there is to compress: text and programs of this machine, in an order that is always the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from race import BUILD, MIB

# MiB from each folder.
SOURCES = (("/usr/lib/python3", 20), ("/usr/lib/python3.11", 40), ("/usr/share/doc", 30), ("/usr/bin", 40))
FILLER = "/usr/lib"
NBYTES = 170 * MIB


def files_below(folder: str) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(at) / name
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def make() -> tuple[Path, str]:
    """The corpus, kept for the next time, and what it is made of."""
    path, about = BUILD / "corpus", BUILD / "corpus.json"
    if not about.exists():
        parts = {}
        BUILD.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as corpus:
            for folder, mib in (*SOURCES, (FILLER, NBYTES // MIB)):
                began = corpus.tell()
                end = min(began + mib * MIB, NBYTES)
                for source in files_below(folder):
                    if corpus.tell() >= end:
                        break
                    corpus.write(source.read_bytes()[: end - corpus.tell()])
                parts[folder] = (corpus.tell() - began) // MIB
        about.write_text(json.dumps(parts))
    parts = json.loads(about.read_text())
    mix = ", ".join(f"{mib} MiB of {folder}" for folder, mib in parts.items() if mib)
    return path, f"{path.stat().st_size / 1e6:.0f} MB: {mix}"
