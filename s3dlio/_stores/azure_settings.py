"""How Azure Blob Storage is reached: what `configure_azure` was told, else the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from s3dlio._errors import InvalidInputError
from s3dlio._stores.network import AS_IT_IS, check_deadlines, check_endpoint, check_strings

CHECKSUMS = ("auto", "crc64", "md5", "none")

# "Storage account overview" and "Naming and referencing containers, blobs, and metadata".
ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
CONTAINER = re.compile(r"\$[a-z]+|(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")


class Own:
    """An object of the caller's, which is equal to itself alone: not all can be hashed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True, kw_only=True)
class AzureSettings:
    """How Azure is reached.  Each has a keyword of `configure_azure`, which also says what they mean."""

    account: str | None = None
    container: str | None = None
    endpoint_url: str | None = None
    connection_string: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    credential: Own | None = field(default=None, repr=False)
    anonymous: bool = False
    checksums: str = "auto"
    verify: str = "size"
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    operation_timeout: float = 3600.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        check_strings(self)
        for url in (self.endpoint_url, connection_parts(self.connection_string).get("blobendpoint")):
            if url is not None:
                check_endpoint("Azure", url)
        if self.account is not None and not ACCOUNT.fullmatch(self.account):
            raise InvalidInputError(f"account must be 3 to 24 lower-case letters and digits, not {self.account!r}")
        if self.container is not None and not CONTAINER.fullmatch(self.container):
            raise InvalidInputError(f"container must be 3 to 63 of a-z, 0-9 and single '-', not {self.container!r}")
        if self.checksums not in CHECKSUMS:
            raise InvalidInputError(f"checksums must be one of {', '.join(CHECKSUMS)}, not {self.checksums!r}")
        if self.verify not in ("none", "size"):
            raise InvalidInputError(f"verify must be none or size, not {self.verify!r}")
        if not isinstance(self.anonymous, bool):
            raise TypeError(f"anonymous must be True or False, not {self.anonymous!r}")
        check_deadlines(self)

    @property
    def named_account(self) -> str | None:
        """The account that a URI may leave out."""
        return self.account or connection_parts(self.connection_string).get("accountname")

    def endpoint(self, account: str) -> str:
        """Where an account is.  Raises InvalidInputError where the endpoint is that of another one."""
        parts = connection_parts(self.connection_string)
        url = self.endpoint_url or parts.get("blobendpoint")
        if url is None:
            suffix = parts.get("endpointsuffix", "core.windows.net")
            return f"{parts.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
        split = urlsplit(url)
        host, path = split.hostname or "", split.path.strip("/")
        first, _, rest = host.partition(".")
        if path:
            good = path.rpartition("/")[2] == account
        elif host == "localhost" or _is_address(host):
            return f"{url.rstrip('/')}/{account}"
        else:
            good = first == account or not rest.startswith("blob.")  # a domain of one's own names no account
        if not good:
            raise InvalidInputError(f"the Azure endpoint {url!r} is not that of the account {account!r}")
        return url

    def checksum_kind(self, account: str) -> str:
        """By what a block is checked.  Emulators do not all know CRC64."""
        if self.checksums != "auto":
            return self.checksums
        return "crc64" if ".blob.core." in self.endpoint(account) else "md5"

    def credentials(self) -> tuple[str, Any]:
        """What signs: ``('key', …)``, ``('sas', …)``, ``('object', …)``, ``('anonymous', None)`` or ``('default',
        None)``."""
        parts = connection_parts(self.connection_string)
        sas = parts.get("sharedaccesssignature")
        if key := parts.get("accountkey") or (None if sas else self.account_key):
            return "key", key
        if sas := sas or self.sas_token:
            return "sas", sas.lstrip("?")
        if self.credential is not None:
            return "object", self.credential.value
        return ("anonymous" if self.anonymous else "default"), None


_configured: dict[str, Any] = {}


def configure_azure(
    *,
    account: str | None = AS_IT_IS,
    container: str | None = AS_IT_IS,
    endpoint_url: str | None = AS_IT_IS,
    connection_string: str | None = AS_IT_IS,
    account_key: str | None = AS_IT_IS,
    sas_token: str | None = AS_IT_IS,
    credential: Any = AS_IT_IS,
    anonymous: bool | None = AS_IT_IS,
    checksums: str | None = AS_IT_IS,
    verify: str | None = AS_IT_IS,
    connect_timeout: float | None = AS_IT_IS,
    stall_timeout: float | None = AS_IT_IS,
    operation_timeout: float | None = AS_IT_IS,
    retries: int | None = AS_IT_IS,
    backoff: float | None = AS_IT_IS,
) -> None:
    """Says how Azure is reached, from now on and for the whole process; what is under way goes on as it began.

    Only what is named changes; ``None`` goes back to the environment or the default.  In brackets where a setting
    comes from otherwise.

    ``account``, ``container``
        What a URI may leave out: ``az:///blob``, ``az://container/blob`` (``AZURE_BLOB_ACCOUNT``, or the account of the
        connection string, and ``AZURE_BLOB_CONTAINER``).
    ``endpoint_url``
        Of an emulator or a sovereign cloud: ``https://ACCOUNT.blob.example`` or ``http://host:port/ACCOUNT``
        (``AZURE_STORAGE_ENDPOINT``, ``AZURE_BLOB_ENDPOINT_URL``, that of the connection string;
        ``https://ACCOUNT.blob.core.windows.net``).
    ``connection_string``, ``account_key``, ``sas_token``
        The first of them that there is signs the requests (``AZURE_STORAGE_CONNECTION_STRING``, ``AZURE_STORAGE_KEY``,
        ``AZURE_STORAGE_SAS_TOKEN``).  The connection string ``UseDevelopmentStorage=true`` is that of Azurite.
    ``credential``
        An object of the package azure-identity, or one like it.
    ``anonymous=False``
        ``True`` signs nothing, for public containers.  Without any of these, azure-identity's
        ``DefaultAzureCredential`` signs.  One that is said here goes before all of the environment.
    ``checksums='auto'``
        By what the service checks each block: ``'crc64'``, ``'md5'``, ``'none'``.  ``'auto'`` is CRC64 in the cloud and
        MD5 for an endpoint of one's own.
    ``verify='size'``
        What is asked of the service after a stream is stored; ``'none'`` asks nothing.
    ``connect_timeout=10``, ``stall_timeout=30``, ``operation_timeout=3600``
        Seconds until a connection stands; seconds in which nothing moves, neither out nor in, after which a request is
        sent again; and seconds for a request with all its repetitions.
    ``retries=5``, ``backoff=0.5``
        How often a request is repeated, and after how many seconds the first time; then after twice as long.

    Raises InvalidInputError for a value that cannot be, TypeError for one of the wrong type or an unknown name.
    """
    given = {name: value for name, value in locals().items() if value is not AS_IT_IS}
    if given.get("credential") is not None:
        given["credential"] = Own(credential)
    global _configured
    changed = {name: value for name, value in (_configured | given).items() if value is not None}
    AzureSettings(**changed)
    _configured = changed  # at once: other threads read it


_VARIABLES = {
    "account": ("AZURE_BLOB_ACCOUNT",),
    "container": ("AZURE_BLOB_CONTAINER",),
    "endpoint_url": ("AZURE_STORAGE_ENDPOINT", "AZURE_BLOB_ENDPOINT_URL"),
    "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
    "account_key": ("AZURE_STORAGE_KEY",),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
}


# Any of them, configured, goes before all of the environment.
_SIGNING = ("connection_string", "account_key", "sas_token", "credential", "anonymous")


def current_settings() -> AzureSettings:
    """The settings that hold now."""
    found = _from_environment(os.environ)
    if any(name in _configured for name in _SIGNING):
        for name in ("account_key", "sas_token"):
            found.pop(name, None)
        if "connection_string" in found:
            found["connection_string"] = _without_secrets(found["connection_string"])
    return _settings_of(tuple((found | _configured).items()))


def _without_secrets(connection_string: str) -> str:
    parts = connection_parts(connection_string)
    kept = {name: value for name, value in parts.items() if name not in ("accountkey", "sharedaccesssignature")}
    return ";".join(f"{name}={value}" for name, value in kept.items())


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(64)
def _settings_of(items: tuple[tuple[str, Any], ...]) -> AzureSettings:
    return AzureSettings(**dict(items))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for setting, variables in _VARIABLES.items():
        for variable in variables:
            if value := environment.get(variable):
                found[setting] = value
                break
    return found


# What UseDevelopmentStorage=true stands for; the key is no secret ("Configure Azure Storage connection strings").
_EMULATOR = {
    "accountname": "devstoreaccount1",
    "accountkey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "blobendpoint": "http://127.0.0.1:10000/devstoreaccount1",
}


def connection_parts(text: str | None) -> dict[str, str]:
    """``AccountName=…;AccountKey=…;BlobEndpoint=…``, by its names in lower case, as one may write them in any.

    Raises InvalidInputError, which does not show it, for what is none.
    """
    if text is None:
        return {}
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    parts = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        return _EMULATOR
    why = None
    if not all(parts.values()):
        why = "not all of it is NAME=VALUE;NAME=VALUE"
    elif not parts.keys() & {"accountname", "blobendpoint"}:
        why = "it has neither an AccountName nor a BlobEndpoint"
    if why:
        raise InvalidInputError(f"the connection string of Azure is not understood: {why}")
    return parts
