"""What was compiled against a released header goes on working: tests/abi/ keeps one of each release, as it was.

Until a release is made its folder follows csrc/include; from then on nothing in it changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from building import ROOT, paths_to, run

import s3dlio

CURRENT = ROOT / "csrc/include"
RELEASES = sorted((ROOT / "tests/abi").iterdir())
VERSION = re.compile("S3DLIO_VERSION_(MAJOR|MINOR|PATCH)")


@dataclass
class Interface:
    """What programs have compiled into them."""

    calls: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    structs: dict[str, list[str]] = field(default_factory=dict)
    growing: set[str] = field(default_factory=set)


def read(text: str) -> Interface:
    found = Interface()
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    for name, number in re.findall(r"#define (S3DLIO_\w+) +(-?\d+)$", text, re.MULTILINE):
        if not VERSION.fullmatch(name):
            found.numbers[name] = int(number)
    for name, number in re.findall(r"\b(S3DLIO_\w+) = (-?\d+)", text):
        found.numbers[name] = int(number)
    text = " ".join(text.split())
    for name, fields in re.findall(r"\bstruct (\w+) \{ (.*?)\}", text):
        found.structs[name] = [each.strip() for each in fields.split(";") if each.strip()]
    for result, name, arguments in re.findall(r"S3DLIO_API ([\w *]+?) ?\b(s3dlio_\w+)\(([^)]*)\)", text):
        # The names of arguments may change.
        types = [re.sub(r"(?<=[ *])\w+$", "", each.strip()).strip() for each in arguments.split(",")]
        found.calls[name] = f"{result}({', '.join(types)})"
        found.growing |= set(re.findall(r"struct (\w+) \*\w+, size_t struct_nbytes", arguments))
    found.growing |= {name for name in found.structs if name.endswith("_options")}
    return found


def read_folder(include: Path) -> Interface:
    return read("\n".join(header.read_text() for header in sorted((include / "s3dlio").glob("*.h"))))


def breaks(old: Interface, new: Interface) -> list[str]:
    """What programs that were compiled with the old headers would stumble over."""
    found = [
        f"{name}: {call} is now {new.calls.get(name)}"
        for name, call in old.calls.items()
        if call != new.calls.get(name)
    ]
    for name, number in old.numbers.items():
        if new.numbers.get(name) != number:
            found.append(f"{name}: {number} is now {new.numbers.get(name)}")
    for name, fields in old.structs.items():
        now = new.structs.get(name, [])
        if name in old.growing:
            now = now[: len(fields)]
        if now != fields:
            found.append(f"struct {name}: {fields} is now {now}")
    return found


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_headers_still_mean_what_a_release_said(release: Path) -> None:
    old, new = read_folder(release), read_folder(CURRENT)
    assert len(old.calls) > 30
    assert len(old.numbers) > 15
    assert {"s3dlio_writer_options", "s3dlio_writer_stats", "s3dlio_stage_totals"} <= old.growing
    if old.numbers["S3DLIO_ABI_VERSION"] == new.numbers["S3DLIO_ABI_VERSION"]:
        assert breaks(old, new) == []


def test_this_version_is_among_the_releases() -> None:
    assert s3dlio.__version__ in [release.name for release in RELEASES]


def test_abi_changes_with_the_major_version() -> None:
    # That is what a program asks CMake and conda for.
    assert read_folder(CURRENT).numbers["S3DLIO_ABI_VERSION"] == int(s3dlio.__version__.split(".")[0])


@pytest.mark.parametrize("compiler", [("cc",), ("c++", "-x", "c++", "-std=c++11")], ids=["C", "C++"])
@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_program_compiled_with_a_released_header_runs(
    release: Path, compiler: tuple[str, ...], prefix: Path, disk_path: Path
) -> None:
    paths = paths_to(prefix)
    flags = run("pkg-config", "--libs", "s3dlio", **paths).split()
    program = disk_path / "program"
    source = [*compiler, "-Wall", "-Wextra", "-Werror", release / "program.c", "-x", "none", "-o", program]
    run(*source, f"-I{release}", *flags)
    assert run(program, disk_path, **paths) == f"compiled with {release.name}, ran\n"


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_program_of_a_release_uses_every_call(release: Path) -> None:
    program = (release / "program.c").read_text()
    assert [name for name in read_folder(release).calls if f"{name}(" not in program] == []


def test_options_start_with_their_size() -> None:
    structs = {name: fields for name, fields in read_folder(CURRENT).structs.items() if name.endswith("_options")}
    assert len(structs) >= 3
    assert {name: fields[0] for name, fields in structs.items()} == dict.fromkeys(structs, "size_t struct_nbytes")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("s3dlio_writer_abort(", "s3dlio_writer_drop("),
        ("uint64_t nbytes2", "uint32_t nbytes2"),
        ("S3DLIO_E_BUSY = -10004", "S3DLIO_E_BUSY = -10011"),
        ("int zstd_level;", "int zstd_level; int planted;"),
        ("uint32_t crc32c;", "uint32_t crc32c; uint32_t planted;"),
        ("#define S3DLIO_ZSTD_LEVEL_MAX 22", "#define S3DLIO_ZSTD_LEVEL_MAX 19"),
    ],
)
def test_change_that_breaks_programs_is_seen(before: str, after: str) -> None:
    text = "\n".join(header.read_text() for header in (CURRENT / "s3dlio").glob("*.h"))
    assert before in text
    assert breaks(read(text), read(text.replace(before, after))) != []


def test_change_that_only_adds_is_none() -> None:
    text = "\n".join(header.read_text() for header in (CURRENT / "s3dlio").glob("*.h"))
    more = text.replace("int timeout_ms;", "int timeout_ms; int more;") + "S3DLIO_API int\ns3dlio_more(void);\n"
    assert more.count("more") >= 3
    assert breaks(read(text), read(more)) == []
