"""Any sequence of chunks, with any settings, comes back as their concatenation."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import crc32c as independent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import s3dlio

BORDERS = st.sampled_from([0, 1, 511, 512, 4095, 4096, 65535, 65536, 65537, 131072, 200_001, 1_000_000])
SIZES = st.lists(BORDERS | st.integers(0, 300_000), max_size=10)
SETTINGS = st.fixed_dictionaries(
    {
        "buffer_size": st.integers(1, 400_000),
        "in_flight": st.integers(1, 9),
        "durability": st.sampled_from(["none", "data", "full"]),
        "direct": st.booleans(),
        "compression": st.sampled_from([None, "zstd"]),
        "level": st.sampled_from([1, 3, 7]),
        "threads": st.sampled_from([None, 0, 2]),
    }
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scheme=st.sampled_from(["file", "direct", "memory"]), sizes=SIZES, options=SETTINGS, seed=st.integers(0, 2**32))
def test_object_equals_the_concatenation_of_its_chunks(
    disk_path: Path, scheme: str, sizes: list[int], options: dict[str, Any], seed: int
) -> None:
    choose = random.Random(seed)
    chunks = [choose.randbytes(size) if choose.random() < 0.5 else bytes([seed % 256]) * size for size in sizes]
    data = b"".join(chunks)
    with tempfile.TemporaryDirectory(dir=disk_path) as folder:
        with s3dlio.open_writer(f"{scheme}://{folder}/a", **options) as writer:
            for chunk in chunks:
                writer.write_chunk(chunk)
        with s3dlio.open_reader(writer.uri, decompress=options["compression"] is not None) as reader:
            assert reader.read() == data
        stored = s3dlio.stat(writer.uri)["size"]
        assert writer.checksum() == f"crc32c:{independent.crc32c(data):08x}"
        assert (writer.bytes_written(), writer.compressed_bytes()) == (len(data), stored)
        s3dlio.delete(writer.uri)
