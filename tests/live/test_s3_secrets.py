"""Secret keys and session tokens stand in no log, no repr and no error, with every log at its most talkative."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import s3_teller
import servers

SECRET = "s3cret/Key+0f+the+Tests/1234567890abcdef"
TOKEN = "t0ken/Of+the+Tests/" + "0123456789abcdef" * 8 + "=="


def forms(secret: str) -> tuple[str, ...]:
    return secret, quote(secret), quote(secret, safe=""), base64.b64encode(secret.encode()).decode()


def tell(
    moto_server: servers.Server, seaweed: servers.Server, folder: Path, source: str, planted: bool = False
) -> tuple[str, str]:
    """What the program shows, and what awscrt has logged."""
    (port,) = servers.free_ports(1)
    job = {
        "store": moto_server.url,
        "refusing": seaweed.url,
        "nobody": f"http://127.0.0.1:{port}",
        "folder": str(folder),
        "awscrt_log": str(folder / "awscrt.log"),
        "source": source,
        "key": servers.ACCESS_KEY,
        "secret": SECRET,
        "token": TOKEN,
        "planted": planted,
    }
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    values = dict(zip(names, (servers.ACCESS_KEY, SECRET, TOKEN), strict=True))
    environment = servers.environment(moto_server.url) | dict.fromkeys(map(str.upper, names), "")
    if source == "environment":
        environment |= {name.upper(): value for name, value in values.items()}
    elif source == "profile":
        lines = "".join(f"{name} = {value}\n" for name, value in values.items())
        (folder / "credentials").write_text(f"[told]\n{lines}")
        environment["AWS_SHARED_CREDENTIALS_FILE"] = str(folder / "credentials")
    done = subprocess.run(
        [sys.executable, "-X", "dev", s3_teller.__file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown[-3000:]
    return shown, (folder / "awscrt.log").read_text(errors="replace")


@pytest.mark.parametrize("source", ["environment", "keywords", "function", "profile"])
def test_credentials_are_shown_nowhere(
    moto: str,
    moto_server: servers.Server,
    seaweed: servers.Server,
    tmp_path: Path,
    source: str,
    figure: Callable[[str], None],
) -> None:
    shown, logged = tell(moto_server, seaweed, tmp_path, source)
    # It has been everywhere, with all logs on.
    for sign in (
        "TRACE",
        "dropped unfinished",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "S3Settings(",
        "tried 2 times",
    ):
        assert sign in shown, sign
    assert "SigV4" in logged
    found = [form for secret in (SECRET, TOKEN) for form in forms(secret) if form in shown]
    figure(f"s3 secrets, from {source}: {len(shown.splitlines())} lines, {len(found)} with a secret")
    assert found == []
    # awscrt's own log is not ours: from INFO on it shows what is signed, and so the token (docs/s3.md).
    assert not any(form in logged for form in forms(SECRET))


def test_secret_in_a_log_is_found(
    moto: str, moto_server: servers.Server, seaweed: servers.Server, tmp_path: Path
) -> None:
    """A planted fault."""
    shown, _ = tell(moto_server, seaweed, tmp_path, "keywords", planted=True)
    assert SECRET in shown
