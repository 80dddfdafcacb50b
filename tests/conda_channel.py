"""A channel on this machine with all that conda/recipe.yaml asks for, made of what is installed here.

libzstd and liburing are the distribution's own, with the run_exports that their conda packages have; Python is a
virtual environment of the one that runs this; its packages are those that pip installed.  Compilers and tools are names
only: the build uses those of the system, so nothing is said about the channel's own.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import rattler
import rattler_build
from building import run
from rattler.index import index_fs

PLATFORM = "linux-64"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = ("gcc_linux-64", "sysroot_linux-64", "cmake", "make", "pkg-config", "python-abi3")
DISTRIBUTIONS = {
    "pip": [],
    "scikit-build-core": ["packaging", "pathspec"],
    "packaging": [],
    "pathspec": [],
    "cffi": ["pycparser"],
    "pycparser": [],
    "awscrt": [],
    "azure-storage-blob": ["azure-core", "cryptography", "isodate", "typing_extensions"],
    "azure-core": ["requests", "typing_extensions"],
    "cryptography": ["cffi"],
    "isodate": [],
    "requests": ["certifi", "charset-normalizer", "idna", "urllib3"],
    "certifi": [],
    "charset-normalizer": [],
    "idna": [],
    "urllib3": [],
    "typing_extensions": [],
}

LIBRARY = """
package:
  name: {name}
  version: "{version}"
build:
  script: cp -a {files}/. $PREFIX
requirements:
  run_exports:
    - {name} >={version}
"""


def make(folder: Path) -> Path:
    channel = folder / "channel"
    (channel / "noarch").mkdir(parents=True)
    (channel / PLATFORM).mkdir()
    for name in TOOLS:
        _assemble(channel, folder / name, name, "3.25" if name == "cmake" else "3.11")
    _make_python(folder / "python")
    _assemble(channel, folder / "python", "python", platform.python_version())
    for name, depends in DISTRIBUTIONS.items():
        _copy_distribution(name, folder / name / "lib" / PYTHON / "site-packages")
        _assemble(channel, folder / name, name, importlib.metadata.version(name), [*depends, "python"])
    _build_library(channel, folder, "zstd", "libzstd", ["zstd.h", "zstd_errors.h"])
    _build_library(channel, folder, "liburing", "liburing", ["liburing.h", "liburing"])
    asyncio.run(index_fs(channel))
    return channel


def build(recipe: Path, channel: Path, output: Path) -> list[Path]:
    """Builds each output of a recipe and runs its tests."""
    results = rattler_build.Stage0Recipe.from_file(str(recipe)).run_build(
        variant_config=rattler_build.VariantConfig.from_file(str(recipe.parent / "variants.yaml")),
        tool_config=rattler_build.ToolConfiguration(test_strategy="native"),
        output_dir=output,
        channels=[channel.as_uri()],
    )
    return [Path(package) for result in results for package in result.packages]


def install(specs: Iterable[str], channels: Iterable[Path], prefix: Path) -> list[str]:
    """Installs packages and what they depend on; returns the names of all of them."""

    async def solve_and_install() -> list[str]:
        records = await rattler.solve(
            [rattler.Channel(channel.as_uri()) for channel in channels],
            list(specs),
            platforms=[PLATFORM, "noarch"],
            virtual_packages=rattler.VirtualPackage.detect(),
        )
        await rattler.install(records, target_prefix=prefix, show_progress=False)
        return sorted(record.name.normalized for record in records)

    return asyncio.run(solve_and_install())


def _assemble(channel: Path, files: Path, name: str, version: str, depends: list[str] | None = None) -> None:
    files.mkdir(exist_ok=True)
    rattler_build.assemble_package(
        name=name,
        version=version,
        target_platform=PLATFORM,
        build_string="0",
        output_dir=channel / PLATFORM,
        files_dir=files,
        depends=depends,
        compression_level=1,
    )


def _make_python(folder: Path) -> None:
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "python3", PYTHON):
        (folder / "bin" / name).symlink_to(program)
    (folder / "pyvenv.cfg").write_text(f"home = {program.parent}\n")


def _copy_distribution(name: str, site_packages: Path) -> None:
    for file in importlib.metadata.distribution(name).files or []:
        if ".." not in file.parts and file.suffix != ".pyc":
            target = site_packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)


def _build_library(channel: Path, folder: Path, name: str, module: str, headers: list[str]) -> None:
    files = folder / name
    for part in ("include", "lib/pkgconfig"):
        (files / part).mkdir(parents=True)
    include = Path(run("pkg-config", "--variable=includedir", module).strip())
    library = Path(run("cc", f"-print-file-name={module}.so").strip()).parent
    version = run("pkg-config", "--modversion", module).strip()
    for header in headers:
        copy = shutil.copytree if (include / header).is_dir() else shutil.copy
        copy(include / header, files / "include" / header)
    found = list(library.glob(f"{module}.so*"))
    assert found, f"no {module}.so in {library}"
    for shared in found:
        shutil.copy(shared, files / "lib" / shared.name, follow_symlinks=False)
    (files / f"lib/pkgconfig/{module}.pc").write_text(
        f"prefix=${{pcfiledir}}/../..\nName: {name}\nDescription: {name}\nVersion: {version}\n"
        f"Libs: -L${{prefix}}/lib -l{module.removeprefix('lib')}\nCflags: -I${{prefix}}/include\n"
    )
    recipe = rattler_build.Stage0Recipe.from_yaml(LIBRARY.format(name=name, version=version, files=files))
    recipe.run_build(output_dir=channel, channels=[], no_include_recipe=True)
