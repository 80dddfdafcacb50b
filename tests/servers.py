"""Real servers on free loopback ports, started for the tests and stopped by their own process id."""

from __future__ import annotations

import gc
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import harness

import s3dlio

# What every Azurite has ("Use the Azurite emulator", "Well-known storage account and key").
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

ACCESS_KEY, SECRET_KEY = "AKIATESTSOFS3DLIO", "the+secret/key-of-the-tests"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Server:
    """A process that listens on ``url``."""

    url: str
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # nothing of it is kept
        self.process.wait(20)
        self.folder.cleanup()


def _start(command: list[str], url: str, folder: tempfile.TemporaryDirectory[str]) -> Server:
    log = Path(folder.name) / "log"
    # Not to outlive the tests, however these end.
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    server = Server(url, process, folder)
    deadline = time.monotonic() + 60
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            server.stop()
            harness.cannot(f"{command[0]} did not come up: {text}")
        time.sleep(0.1)
    return server


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return error.code < 500
    except OSError:
        return False


def _program(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        harness.cannot(f"not installed: {name}")
    return str(found)


def start_seaweed(where: Path | None = None) -> Server:
    """SeaweedFS with its S3 gateway, which refuses wrong checksums and requests that are not signed.  It stores in a
    folder of its own in ``where``, if not in the temporary one."""
    program = _program("weed")
    folder = tempfile.TemporaryDirectory(prefix="s3dlio-weed-", dir=where)
    data = Path(folder.name) / "data"
    data.mkdir()
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = Path(folder.name) / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    # Each has a second port, for gRPC, which is otherwise 10,000 above the first.
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    command = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    command += [f"-s3.config={config}", "-master.volumeSizeLimitMB=1024", "-volume.max=100"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else on fixed ports, once on a machine
    return _start(command, f"http://127.0.0.1:{ports[6]}", folder)


def start_moto() -> Server:
    """moto's server, a second implementation; it takes any checksum and any signature."""
    program = _program("moto_server")
    (port,) = free_ports(1)
    folder = tempfile.TemporaryDirectory(prefix="s3dlio-moto-")
    return _start([program, "-H", "127.0.0.1", "-p", str(port)], f"http://127.0.0.1:{port}", folder)


def start_azurite(where: Path | None = None) -> Server:
    """Azurite, which checks signatures and the MD5 of what it gets.  It stores in a folder of its own in ``where``, if
    not in the temporary one."""
    program = Path(__file__).parent.parent / ".venv/azurite/node_modules/.bin/azurite-blob"
    if not program.exists():
        harness.cannot("not installed: azurite, for which scripts/setup tools needs Node.js and npm")
    (port,) = free_ports(1)
    folder = tempfile.TemporaryDirectory(prefix="s3dlio-azurite-", dir=where)
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", f"{folder.name}/data"]
    # It knows not every version of the service that the SDK asks for, and refuses headers that it does not know.
    command += ["--silent", "--loose", "--skipApiVersionCheck", "--disableTelemetry"]
    return _start(command, f"http://127.0.0.1:{port}/{ACCOUNT}", folder)


def azure_environment(url: str) -> dict[str, str]:
    """What a program needs to reach Azurite, and nothing else, whoever runs the tests."""
    return {
        "AZURE_STORAGE_ENDPOINT": url,
        "AZURE_BLOB_ENDPOINT_URL": "",
        "AZURE_BLOB_ACCOUNT": ACCOUNT,
        "AZURE_BLOB_CONTAINER": "",
        "AZURE_STORAGE_KEY": ACCOUNT_KEY,
        "AZURE_STORAGE_CONNECTION_STRING": "",
        "AZURE_STORAGE_SAS_TOKEN": "",
    }


def sas(container: str, **permissions: bool) -> str:
    """A token that permits this for an hour."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return generate_container_sas(
        ACCOUNT,
        container,
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions(**permissions),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


def signature(token: str) -> str:
    """The secret part of a SAS, to be looked for in what is unquoted: a target spells it in another way."""
    return unquote(re.search("sig=([^&]+)", token)[1])


def disconnect_azure() -> None:
    """Lets all connections to Azure go."""
    from s3dlio._stores import azure_client

    s3dlio.configure_azure(**dict.fromkeys(inspect.signature(s3dlio.configure_azure).parameters))
    # What was broken off may still wait for the network.
    deadline = time.monotonic() + 20
    while any(thread.name == "s3dlio-azure" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of the store hangs"
        time.sleep(0.01)
    azure_client.close_all()
    gc.collect()


def environment(url: str) -> dict[str, str]:
    """What a program needs to reach the server, and nothing else, whoever runs the tests."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": "us-east-1",
        "AWS_PROFILE": "",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_WEB_IDENTITY_TOKEN_FILE": "",
    }


def disconnect() -> None:
    """Lets all connections to S3 go, and waits for their threads and descriptors."""
    import awscrt.common

    from s3dlio._stores import s3_client

    s3dlio.configure_s3(**dict.fromkeys(inspect.signature(s3dlio.configure_s3).parameters))
    s3_client.close_all()
    gc.collect()
    assert awscrt.common.join_all_native_threads(timeout_sec=20.0)
