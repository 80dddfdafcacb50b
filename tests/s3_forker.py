"""A program that makes processes while it has requests to S3 under way, and prints what became of them.

Its argument is a JSON object: place (``s3://bucket/prefix``), how ('os.fork', 'loader', or a start method of
multiprocessing), rounds, deadline (the seconds after which a child counts as hung), and client ('ours', or a planted
fault).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.process
import os
import queue
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from forker import has_ended, must_be_forked

import s3dlio

PART = 5 << 20
POOL = random.Random(1).randbytes(2 * PART)
SIZES = (9 << 20, 0, 1000, 300_000)  # the first is read by several requests
ENDINGS = ("_exit", "exit", "drop", "fork")
WORKERS = 4
OBJECTS = 40

# Planted faults.
held = threading.Lock()


def get(client: str, uri: str) -> bytes:
    if client == "locked":
        with held:  # which a thread of the parent holds, that a child does not have
            return s3dlio.get(uri)
    if client == "stale":
        return POOL[:1000]
    return s3dlio.get(uri)


def part_of(number: int) -> bytes:
    size = SIZES[number] if number < len(SIZES) else SIZES[2 + number % 2]
    return POOL[number : number + size]


class Load:
    """Two threads: one writes a long stream, one reads all the time."""

    def __init__(self, place: str, client: str) -> None:
        self._place = place
        self._crc, self._size = 0, 0
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self.writer = s3dlio.open_writer(f"{place}/stream", buffer_size=PART, in_flight=2)
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._write, self._read)]
        if client == "locked":
            held.acquire()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[int], None]) -> None:
        number = 0
        try:
            while not self._ended.is_set():
                work(number)
                number += 1
        except BaseException as error:
            self._errors.append(error)

    def _write(self, number: int) -> None:
        chunk = memoryview(POOL)[number % 1000 : number % 1000 + (1 << 20)]
        self.writer.write_chunk(chunk)
        self._crc, self._size = s3dlio.crc32c(chunk, self._crc), self._size + len(chunk)
        time.sleep(0.05)

    def _read(self, number: int) -> None:
        number %= OBJECTS
        assert s3dlio.get(f"{self._place}/object-{number}") == part_of(number)
        time.sleep(0.005)

    def finish(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread of the parent hangs"
        if self._errors:
            raise self._errors[0]
        self.writer.finalize()
        assert s3dlio.stat(f"{self._place}/stream")["size"] == self._size
        assert s3dlio.crc32c(s3dlio.get(f"{self._place}/stream")) == self._crc


def work(place: str, client: str, name: str) -> None:
    """What a child does: reads what is there, and writes and reads its own."""
    for number in range(len(SIZES)):
        assert get(client, f"{place}/object-{number}") == part_of(number)
    s3dlio.put(f"{place}/{name}/put", name.encode())
    with s3dlio.open_writer(f"{place}/{name}/stream", buffer_size=PART, in_flight=2) as writer:
        writer.write_chunk(POOL[: PART + 1000])
    assert s3dlio.get(f"{place}/{name}/put") == name.encode()
    assert s3dlio.get(f"{place}/{name}/stream") == POOL[: PART + 1000]
    assert len(s3dlio.list(f"{place}/{name}")) == 2


def be_child(job: dict[str, Any], load: Load, name: str, ending: str) -> NoReturn:
    must_be_forked(load.writer.write_chunk, b"child")
    must_be_forked(load.writer.finalize)
    if ending == "drop":
        del load.writer
        gc.collect()
    work(job["place"], job["client"], name)
    if ending == "_exit":
        os._exit(0)
    if ending == "fork":
        pid = os.fork()
        work(job["place"], job["client"], f"{name}-{'parent' if pid else 'child'}")
        if pid:
            assert has_ended(pid, job["deadline"]), "a grandchild hangs"
    sys.exit(0)


def fork(job: dict[str, Any], load: Load) -> dict[str, int]:
    """Several children at a time, at any moment of the requests."""
    result = {"children": 0, "hung": 0}
    for number in range(job["rounds"]):
        children = []
        for ending in ENDINGS:
            pid = os.fork()
            if pid == 0:
                try:
                    be_child(job, load, f"{number}-{ending}", ending)
                except Exception:
                    traceback.print_exc()
                    os._exit(1)
            children.append(pid)
        for pid in children:
            result["hung"] += not has_ended(pid, job["deadline"])
        result["children"] += len(children)
    return result


def multiprocess(job: dict[str, Any], load: Load) -> dict[str, int]:
    """Processes and pools of multiprocessing."""
    context: Any = multiprocessing.get_context(job["how"])
    result = {"children": 0, "hung": 0}
    for number in range(job["rounds"]):
        children = [
            context.Process(target=work, args=(job["place"], job["client"], f"{number}-{name}")) for name in "abc"
        ]
        for child in children:
            child.start()
        result["hung"] += end_of(children, job["deadline"])
        with context.Pool(WORKERS) as pool:
            names = [(job["place"], job["client"], f"{number}-pool-{name}") for name in range(2 * WORKERS)]
            pool.starmap_async(work, names).get(job["deadline"])
        result["children"] += len(children) + WORKERS
    return result


def end_of(children: list[multiprocessing.process.BaseProcess], seconds: float) -> int:
    """Waits for them; how many hang."""
    hung = 0
    deadline = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.exitcode is None:
            hung += 1
            child.kill()
            child.join(20)
        else:
            assert child.exitcode == 0, f"a child ended with {child.exitcode}"
    return hung


class Loader:
    """As torch's DataLoader has it: workers that are forked for each epoch, a queue of numbers for each of them, one
    queue for all data, and a few numbers more under way than there are workers."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._context: Any = multiprocessing.get_context("fork")
        self.hung = 0

    def _serve(self, numbers: Any, found: Any) -> None:
        while (number := numbers.get(timeout=60)) is not None:
            found.put((number, get(self._job["client"], f"{self._job['place']}/object-{number}")))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        found = self._context.Queue()
        queues = [self._context.Queue() for _ in range(WORKERS)]
        workers = [self._context.Process(target=self._serve, args=(each, found), daemon=True) for each in queues]
        for worker in workers:
            worker.start()
        todo = iter(random.sample(range(OBJECTS), OBJECTS))
        for place in range(2 * WORKERS):
            queues[place % WORKERS].put(next(todo))
        try:
            for place in range(OBJECTS):
                yield found.get(timeout=self._job["deadline"])
                if (number := next(todo, None)) is not None:
                    queues[place % WORKERS].put(number)
        except queue.Empty:
            pass  # the workers will be counted
        for each in queues:
            each.put(None)
        self.hung += end_of(workers, self._job["deadline"])
        for each in (*queues, found):
            each.close()


def load_data(job: dict[str, Any], load: Load) -> dict[str, int]:
    loader = Loader(job)
    result = {"children": 0, "hung": 0, "objects": 0, "wrong": 0}
    for _ in range(job["rounds"]):
        for number, data in loader:
            result["objects"] += 1
            result["wrong"] += data != part_of(number)
        result["children"] += WORKERS
    result["hung"] = loader.hung
    return result


def main(job: dict[str, Any]) -> dict[str, int]:
    s3dlio.put_many((f"{job['place']}/object-{number}", part_of(number)) for number in range(OBJECTS))
    load = Load(job["place"], job["client"])
    load.start()
    result = {"os.fork": fork, "loader": load_data}.get(job["how"], multiprocess)(job, load)
    load.finish()
    return result


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # fork beside threads
    print(json.dumps(main(json.loads(sys.argv[1]))))
