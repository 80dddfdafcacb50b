"""The direct writer, durable: does a GiB cost the same in short and long streams, and do several writers at once, in
threads or in processes, get as much done as one?"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import race
from race import GIB, MIB, Contender, Race

CHUNK = 8 * MIB
WRITERS = (1, 2, 4, 8)


def ours() -> Callable[[str, int, int], None]:
    import s3dlio

    chunk = os.urandom(CHUNK)

    def write(path: str, nbytes: int) -> None:
        with s3dlio.open_writer(f"direct://{path}") as writer:
            for _ in range(nbytes // CHUNK):
                writer.write_chunk(chunk)

    def write_in_threads(path: str, nbytes: int, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(write, nbytes=nbytes), [f"{path}{i}" for i in range(threads)]))

    return write_in_threads


NAME = "s3dlio, direct://"


def lengths(contest: Race) -> None:
    sizes = contest.pick(full=(GIB, 64 * MIB, 256 * MIB, 4 * GIB, 16 * GIB), quick=(128 * MIB, 64 * MIB))
    room = shutil.disk_usage(contest.folder).free // 2
    names = {f"{size // MIB} MiB": size for size in sizes if size <= room}

    def run(name: str) -> float:
        return float(contest.worker(NAME).run(str(contest.path), names[name], 1)["seconds"])

    compare(contest, "One writer, by the length of the stream", names, run, "0.9 to 1.1")


def writers(contest: Race) -> None:
    nbytes = contest.pick(full=512 * MIB, quick=64 * MIB)

    def in_threads(name: str) -> float:
        return float(contest.worker(NAME).run(str(contest.path), nbytes, int(name.split()[0]))["seconds"])

    def in_processes(name: str) -> float:
        workers = [contest.worker(NAME, i) for i in range(int(name.split()[0]))]
        began = time.perf_counter()
        for i, worker in enumerate(workers):
            worker.send(f"{contest.path}{i}-", nbytes, 1)
        for worker in workers:
            worker.receive()
        return time.perf_counter() - began

    names = {f"{count} writer{'s' * (count > 1)}": count * nbytes for count in WRITERS}
    each = f"{nbytes // MIB} MiB each"
    compare(contest, f"Several writers in threads of one process, {each}", names, in_threads, "at least 1")
    compare(contest, f"Several writers in processes, {each}", names, in_processes, "at least 1")


def compare(contest: Race, title: str, nbytes: dict[str, int], run: Callable[[str], float], target: str) -> None:
    """The rate of each, and how it stands to that of the first in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in nbytes}
    for name in contest.in_turn(list(nbytes)):
        seconds[name].append(run(name))
    rates = {name: [nbytes[name] / 1e9 / value for value in seconds[name][1:]] for name in nbytes}
    first = next(iter(nbytes))
    rows: dict[str, dict[str, object]] = {}
    for name, values in rates.items():
        rows[name] = {"value": race.spread(values)}
        if name != first:
            ratios = [value / base for value, base in zip(values, rates[first], strict=True)]
            rows[name] |= {"ratio": race.spread(ratios), "target": target}
    contest.add({"title": title, "unit": "GB/s", "rounds": contest.rounds, "ratio": f"to {first}", "rows": rows})


def main() -> None:
    contenders = (Contender(NAME, ours),)
    with Race(__file__, "Scaling of the direct writer, durable", contenders, rounds=3) as contest:
        lengths(contest)
        writers(contest)


if __name__ == "__main__":
    main()
