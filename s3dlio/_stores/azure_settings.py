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
from s3dlio._stores.network import AS_IT_IS, check_deadlines, check_endpoint

CHECKSUMS = ("auto", "crc64", "md5", "none")

# "Storage account overview" and "Naming and referencing containers, blobs, and metadata".
ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
CONTAINER = re.compile(r"\$[a-z]+|(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class AzureSettings:
    """How Azure is reached.  Each has a keyword of `configure_azure`, which also says what they mean."""

    account: str | None = None
    container: str | None = None
    endpoint_url: str | None = None
    connection_string: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    credential: Any = field(default=None, repr=False)
    anonymous: bool = False
    checksums: str = "auto"
    verify: str = "size"
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    operation_timeout: float = 3600.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        parts = connection_parts(self.connection_string)
        if self.connection_string is not None and not parts.keys() & {"AccountName", "BlobEndpoint"}:
            raise InvalidInputError("the connection string of Azure has neither an AccountName nor a BlobEndpoint")
        for url in (self.endpoint_url, parts.get("BlobEndpoint")):
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
        return self.account or connection_parts(self.connection_string).get("AccountName")

    def endpoint(self, account: str) -> str:
        """Where an account is.  Raises InvalidInputError where the endpoint is that of another one."""
        parts = connection_parts(self.connection_string)
        url = self.endpoint_url or parts.get("BlobEndpoint")
        if url is None:
            suffix = parts.get("EndpointSuffix", "core.windows.net")
            return f"{parts.get('DefaultEndpointsProtocol', 'https')}://{account}.blob.{suffix}"
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
        sas = parts.get("SharedAccessSignature")
        if key := parts.get("AccountKey") or (None if sas else self.account_key):
            return "key", key
        if sas := sas or self.sas_token:
            return "sas", sas.lstrip("?")
        if self.credential is not None:
            return "object", self.credential
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
        ``AZURE_STORAGE_SAS_TOKEN``).
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
    kept = {name: value for name, value in parts.items() if name not in ("AccountKey", "SharedAccessSignature")}
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


def connection_parts(text: str | None) -> dict[str, str]:
    """``AccountName=…;AccountKey=…;BlobEndpoint=…`` ("Configure Azure Storage connection strings")."""
    pairs = (part.partition("=") for part in (text or "").split(";") if "=" in part)
    return {name.strip(): value.strip() for name, _, value in pairs}
