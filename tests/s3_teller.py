"""A program that uses S3 in every way that may tell something, with all logs on, and prints what it gets to see.

Its argument is a JSON object: urls of a store, of one that refuses and of nobody, a folder, where the credentials come
from, they themselves, for where the program hands them over, and whether to log what must not be (a planted fault).
"""

from __future__ import annotations

import json
import logging
import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import awscrt.io

import s3dlio
from s3dlio._stores import s3_client, s3_http, s3_request, s3_settings

PART = 5 << 20


def attempt(work: Callable[[], object]) -> None:
    try:
        shown = repr(work())
    except Exception as error:
        traceback.print_exc()
        shown = f"{error!r} {error} {vars(error)} {error.__reduce__()} {pickle.dumps(error, 0)!r}"
    print(shown)


def in_every_way(folder: Path) -> None:
    """What may succeed or fail, depending on the store."""
    base = "s3://tests/told"
    (folder / "file").write_bytes(b"content")
    attempt(lambda: s3dlio.put(f"{base}/a", b"content"))
    attempt(lambda: s3dlio.get(f"{base}/a"))
    attempt(lambda: s3dlio.get_range(f"{base}/a", 1, 2))
    attempt(lambda: s3dlio.open_reader(f"{base}/a").read(3))
    attempt(lambda: s3dlio.get(f"{base}/missing"))
    attempt(lambda: s3dlio.stat(f"{base}/a"))
    attempt(lambda: s3dlio.list(base))
    attempt(lambda: s3dlio.list("s3://no-such-bucket"))
    attempt(lambda: s3dlio.upload(folder / "file", f"{base}/file"))
    attempt(lambda: s3dlio.download(f"{base}/file", folder / "to"))
    attempt(lambda: s3dlio.copy(f"{base}/a", f"{base}/b"))
    attempt(lambda: s3dlio.list_stale_uploads(base))
    attempt(write)
    attempt(lambda: s3dlio.delete(base, recursive=True))


def write() -> object:
    with s3dlio.open_writer("s3://tests/told/stream", buffer_size=PART) as writer:
        print(repr(writer), vars(writer), repr(writer.stats()))
        writer.write_chunk(bytes(PART + 1))
    with s3dlio.MultipartUploadWriter("tests", "told/multipart", part_size=PART) as multipart:
        print(repr(multipart))
        multipart.write(b"x")
    dropped = s3dlio.open_writer("s3://tests/told/dropped", buffer_size=PART)
    dropped.write_chunk(bytes(2 * PART))
    del dropped
    return multipart.close()


def show_what_there_is() -> None:
    settings = s3_settings.current_settings()
    connection = s3_client.connection_for(settings)
    call = s3_http.Call("GetObject", "GET", "tests", "a")
    request = s3_request.Request(connection, call)
    for each in (settings, connection, connection.client(), call, request, s3_client._connections):
        print(repr(each), str(each))


def refuse(told: str) -> str:
    """The URL of a server that sends back what it must not be told, as S3 does with an expired token."""
    listener = socket.create_server(("127.0.0.1", 0))
    body = f"<Error><Code>ExpiredToken</Code><Message>expired</Message><Token-0>{told}</Token-0></Error>".encode()

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def hand_over(secret: str, token: str) -> dict[str, Any]:
    """Wrong uses of the settings."""

    def fail() -> Any:
        raise ValueError(f"cannot use {secret} and {token}")

    bad: list[dict[str, Any]] = [
        {"endpoint_url": f"http://user:{secret}@127.0.0.1"},
        {"endpoint_url": f"http://127.0.0.1?token={token}"},
        {"endpoint_url": "nonsense"},
        {"addressing": "nonsense"},
        {"secret_access_key": secret, "access_key_id": None},
        {"no_such_setting": secret},
    ]
    for settings in bad:
        attempt(lambda settings=settings: s3dlio.configure_s3(**settings))  # type: ignore[misc]
    return {"credentials": fail}


def main(job: dict[str, Any]) -> None:
    logging.basicConfig(level=1, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
    s3dlio.init_logging("trace")
    awscrt.io.init_logging(awscrt.io.LogLevel.Trace, job["awscrt_log"])
    folder = Path(job["folder"])
    credentials = {"access_key_id": job["key"], "secret_access_key": job["secret"], "session_token": job["token"]}
    given: dict[str, Any] = {}
    if job["source"] == "keywords":
        given = credentials
    elif job["source"] == "function":
        given = {"credentials": lambda: tuple(credentials.values())}
    elif job["source"] == "profile":
        given = {"profile": "told"}
    for url in (job["store"], job["refusing"], job["nobody"], refuse(job["token"])):
        s3dlio.configure_s3(endpoint_url=url, retries=1, backoff=0.01, **given)
        show_what_there_is()
        in_every_way(folder)
    without_token = credentials | {"session_token": None, "credentials": None, "profile": None}
    s3dlio.configure_s3(endpoint_url=job["refusing"], **without_token)
    attempt(lambda: s3dlio.get("s3://tests/told/a"))
    s3dlio.configure_s3(access_key_id=None, secret_access_key=None)
    attempt(lambda: s3dlio.configure_s3(profile="missing"))
    attempt(lambda: s3dlio.get("s3://tests/a"))
    s3dlio.configure_s3(profile=None, endpoint_url=job["store"], **hand_over(job["secret"], job["token"]))
    attempt(lambda: s3dlio.get("s3://tests/a"))
    if job["planted"]:
        logging.getLogger("s3dlio").debug("signing with %s", job["secret"])


if __name__ == "__main__":
    main(json.load(sys.stdin))
