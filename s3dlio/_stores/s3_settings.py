"""How S3 is reached: what `configure_s3` was told, else the environment, else the shared files of the AWS tools.

The names and their order are those of the AWS SDKs and Tools Reference Guide ("Settings reference").
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from s3dlio._errors import InvalidInputError
from s3dlio._stores.network import AS_IT_IS as _AS_IT_IS
from s3dlio._stores.network import check_deadlines, check_endpoint, check_strings

ADDRESSINGS = ("auto", "path", "virtual")
VERIFICATIONS = ("none", "size", "checksum")

Credentials = tuple[str, str, str | None]


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """How S3 is reached.  Each has a keyword of `configure_s3`, which also says what they mean."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials: Callable[[], Credentials] | None = field(default=None, repr=False)
    anonymous: bool = False
    addressing: str = "auto"
    ca_bundle: str | None = None
    checksums: bool = True
    verify: str = "checksum"
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    operation_timeout: float = 3600.0
    retries: int = 5
    backoff: float = 0.5

    # Not of `configure_s3`: AWS_PROFILE, whose credentials go after those of the environment.
    environment_profile: str | None = None

    def __post_init__(self) -> None:
        check_strings(self)
        if self.endpoint_url is not None:
            check_endpoint("S3", self.endpoint_url)
        if self.addressing not in ADDRESSINGS:
            raise InvalidInputError(f"addressing must be one of {', '.join(ADDRESSINGS)}, not {self.addressing!r}")
        if self.verify not in VERIFICATIONS:
            raise InvalidInputError(f"verify must be one of {', '.join(VERIFICATIONS)}, not {self.verify!r}")
        for name in ("anonymous", "checksums"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        check_deadlines(self)
        if self.credentials is not None and not callable(self.credentials):
            raise TypeError("credentials must be a function that returns (access key id, secret key, session token)")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise InvalidInputError("access_key_id and secret_access_key belong together")

    def check_bundle(self) -> None:
        """Not with the others: a file may come later than the settings."""
        if self.ca_bundle is not None and not Path(self.ca_bundle).is_file():
            raise InvalidInputError(f"ca_bundle {self.ca_bundle!r} is no file")


_configured: dict[str, Any] = {}


def configure_s3(
    *,
    endpoint_url: str | None = _AS_IT_IS,
    region: str | None = _AS_IT_IS,
    profile: str | None = _AS_IT_IS,
    access_key_id: str | None = _AS_IT_IS,
    secret_access_key: str | None = _AS_IT_IS,
    session_token: str | None = _AS_IT_IS,
    credentials: Callable[[], Credentials] | None = _AS_IT_IS,
    anonymous: bool | None = _AS_IT_IS,
    addressing: str | None = _AS_IT_IS,
    ca_bundle: str | None = _AS_IT_IS,
    checksums: bool | None = _AS_IT_IS,
    verify: str | None = _AS_IT_IS,
    connect_timeout: float | None = _AS_IT_IS,
    stall_timeout: float | None = _AS_IT_IS,
    operation_timeout: float | None = _AS_IT_IS,
    retries: int | None = _AS_IT_IS,
    backoff: float | None = _AS_IT_IS,
) -> None:
    """Says how S3 is reached, from now on and for the whole process; what is under way goes on as it began.

    Only what is named changes; ``None`` goes back to the environment or the default.  In brackets where a setting
    comes from otherwise.

    ``endpoint_url``
        ``http://host:port/path`` of a compatible store (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile's
        ``endpoint_url``; Amazon).
    ``region``
        (``AWS_REGION``, ``AWS_DEFAULT_REGION``, the profile's ``region``; ``us-east-1``).
    ``profile``
        A section of the shared files, whose credentials then go before those of the environment (``AWS_PROFILE``;
        ``default``).
    ``access_key_id``, ``secret_access_key``, ``session_token``
        (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, the profile, web identity, and the
        metadata services of ECS and EC2; EC2 is not asked when there is an endpoint).
    ``credentials``
        A function without arguments that returns these three (the token may be ``None``); called for each request.
    ``anonymous=False``
        ``True`` signs nothing, for public buckets.
    ``addressing='auto'``
        ``'path'`` names the bucket in the path, ``'virtual'`` in the host; ``'auto'`` is path for an endpoint and for a
        bucket with dots (the profile's ``addressing_style``).
    ``ca_bundle``
        A file of certificates to trust (``AWS_CA_BUNDLE``, the profile's ``ca_bundle``; the system's).
    ``checksums=True``
        ``False`` sends none, for stores that refuse them.
    ``verify='checksum'``
        What is compared by one HEAD request after a stream is stored: ``'none'``, ``'size'``, or also the checksum
        where the store keeps it.
    ``connect_timeout=10.0``, ``stall_timeout=30.0``, ``operation_timeout=3600.0``
        Seconds for a connection; seconds in which nothing moves, neither out nor in, after which a request is sent
        again; and seconds for a request with all its repetitions.
    ``retries=5``, ``backoff=0.5``
        Repetitions of a request that failed for a reason that may pass, and seconds before the first of them, twice as
        many before each next.

    Raises TypeError for an unknown name or a wrong type, InvalidInputError for a value out of range.
    """
    given = {name: value for name, value in locals().items() if value is not _AS_IT_IS}
    global _configured
    changed = {name: value for name, value in (_configured | given).items() if value is not None}
    S3Settings(**changed).check_bundle()
    _configured = changed  # at once: other threads read it


def current_settings() -> S3Settings:
    """The settings that hold now."""
    environment, configured = os.environ, _configured
    profile = configured.get("profile") or environment.get("AWS_PROFILE") or "default"
    found = _from_profile(profile, *shared_files(environment)) | _from_environment(environment)
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        found.pop("endpoint_url", None)
    found["environment_profile"] = environment.get("AWS_PROFILE") or None
    return _settings_of(tuple(({"region": "us-east-1"} | found | configured).items()))


@lru_cache(64)
def _settings_of(items: tuple[tuple[str, Any], ...]) -> S3Settings:
    return S3Settings(**dict(items))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {
        "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "ca_bundle": ("AWS_CA_BUNDLE",),
    }
    found = {}
    for setting, variables in names.items():
        for variable in variables:
            if value := environment.get(variable):
                found[setting] = value
                break
    return found


def shared_files(environment: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The shared files and when they changed."""
    paths = (
        environment.get("AWS_CONFIG_FILE") or "~/.aws/config",
        environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
    )
    found = []
    for path in paths:
        # Each operation comes here, and pathlib would take several times as long.
        expanded = os.path.expanduser(path)  # noqa: PTH111
        try:
            found.append((expanded, os.stat(expanded).st_mtime_ns))  # noqa: PTH116
        except OSError:
            found.append((expanded, 0))
    return tuple(found)


@lru_cache(16)
def _from_profile(profile: str, config: tuple[str, int], credentials: tuple[str, int]) -> dict[str, Any]:
    """What a profile says beside its credentials, which the CRT reads itself."""
    sections = _sections(config[0])
    # In the config file a profile is [profile NAME], but [default]; services have a section of their own.
    section = dict(sections.get("default" if profile == "default" else f"profile {profile}", {}))
    found: dict[str, Any] = {}
    for name in ("region", "ca_bundle", "endpoint_url"):
        if section.get(name):
            found[name] = section[name]
    services = sections.get(f"services {section.get('services', '')}", {})
    if endpoint := _nested(services.get("s3", "")).get("endpoint_url"):
        found["endpoint_url"] = endpoint
    if (style := _nested(section.get("s3", "")).get("addressing_style")) in ADDRESSINGS:
        found["addressing"] = style
    for name in ("region", "endpoint_url"):
        if value := _sections(credentials[0]).get(profile, {}).get(name):
            found.setdefault(name, value)
    return found


def check_profile(profile: str) -> None:
    """Whether the shared files have it."""
    (config, _), (credentials, _) = shared_files(os.environ)
    names = {name.removeprefix("profile ").strip() for name in _sections(config)} | set(_sections(credentials))
    if profile not in names:
        raise InvalidInputError(f"there is no AWS profile {profile!r} in {config} or {credentials}")


def _sections(path: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(default_section="", strict=False, allow_no_value=True)
    wrong = None
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        wrong = type(error).__name__
    if wrong:
        # Not from the error, whose text shows the line: that may hold a secret.
        raise InvalidInputError(f"{path} is no file of profiles: {wrong}")
    return {name.strip(): {key: value or "" for key, value in parser.items(name)} for name in parser.sections()}


def _nested(text: str) -> dict[str, str]:
    """The indented lines below a setting such as ``s3 =``."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
