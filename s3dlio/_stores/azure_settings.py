"""How Azure Blob Storage is reached: what `configure_azure` was told, else the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from s3dlio._errors import InvalidInputError
from s3dlio._stores.network import check_deadlines, check_endpoint

CHECKSUMS = ("auto", "crc64", "md5", "none")

# "Storage account overview" and "Naming and referencing containers, blobs, and metadata".
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")


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
        if self.endpoint_url is not None:
            check_endpoint("Azure", self.endpoint_url)
        if self.account is not None and not _ACCOUNT.fullmatch(self.account):
            raise InvalidInputError(f"account must be 3 to 24 lower-case letters and digits, not {self.account!r}")
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


_configured: dict[str, Any] = {}


def configure_azure(**settings: Any) -> None:
    """Says how Azure is reached, from now on and for the whole process; what is under way goes on as it began.

    Only what is named changes; ``None`` goes back to the environment or the default.  In brackets where a setting
    comes from otherwise.

    ``account``, ``container``
        What a URI leaves out: see `parse` of ``docs/azure.md`` (``AZURE_BLOB_ACCOUNT``, ``AZURE_BLOB_CONTAINER``).
    ``endpoint_url``
        Of an emulator or a sovereign cloud: ``https://ACCOUNT.blob.example`` or ``http://host:port/ACCOUNT``
        (``AZURE_STORAGE_ENDPOINT``, ``AZURE_BLOB_ENDPOINT_URL``; ``https://ACCOUNT.blob.core.windows.net``).
    ``connection_string``, ``account_key``, ``sas_token``
        The first of them that there is signs the requests (``AZURE_STORAGE_CONNECTION_STRING``, ``AZURE_STORAGE_KEY``,
        ``AZURE_STORAGE_SAS_TOKEN``).
    ``anonymous=False``
        ``True`` signs nothing, for public containers.
    ``credential``
        An object of the package azure-identity, or one like it; without any of the above that package's
        ``DefaultAzureCredential`` is used.
    ``checksums='auto'``
        By what the service checks each block: ``'crc64'``, ``'md5'``, ``'none'``.  ``'auto'`` is CRC64 in the cloud and
        MD5 for an endpoint of one's own.
    ``verify='size'``
        What is asked of the service after a stream is stored; ``'none'`` asks nothing.
    ``connect_timeout=10``, ``stall_timeout=30``, ``operation_timeout=3600``
        Seconds until a connection stands, between two signs of life, and for a whole request with its repetitions.
    ``retries=5``, ``backoff=0.5``
        How often a request is repeated, and after how many seconds the first time; then after twice as long.

    Raises InvalidInputError for a value that cannot be, TypeError for one of the wrong type or an unknown name.
    """
    global _configured
    changed = {name: value for name, value in (_configured | settings).items() if value is not None}
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


def current_settings() -> AzureSettings:
    """The settings that hold now."""
    return _settings_of(tuple((_from_environment(os.environ) | _configured).items()))


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
