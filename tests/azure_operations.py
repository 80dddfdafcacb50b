"""The names of the operations of Azure Blob Storage, for the proxy."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


def azure_operation(method: str, target: str, headers: list[tuple[str, str]]) -> str:
    query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
    names = {name.lower() for name, _ in headers}
    comp = query.get("comp", "")
    if query.get("restype") == "container":
        if comp:
            return {"list": "List Blobs", "batch": "Blob Batch"}[comp]
        return {"PUT": "Create Container", "DELETE": "Delete Container"}.get(method, "Get Container Properties")
    if comp:
        return {"block": "Put Block", "blocklist": "Put Block List", "batch": "Blob Batch"}[comp]
    if method == "PUT":
        return "Copy Blob" if "x-ms-copy-source" in names else "Put Blob"
    return {"GET": "Get Blob", "HEAD": "Get Blob Properties", "DELETE": "Delete Blob"}[method]
