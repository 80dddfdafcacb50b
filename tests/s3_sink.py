"""A program: an S3 server that keeps nothing but sizes, and answers as if it had everything.

It prints its URL, and ends when its standard input does.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
from collections import Counter
from urllib.parse import parse_qs, urlsplit

UPLOAD = "<InitiateMultipartUploadResult><UploadId>{}</UploadId></InitiateMultipartUploadResult>"
COMPLETED = "<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"

uploads: Counter[str] = Counter()
objects: dict[str, int] = {}


class Connection(socketserver.StreamRequestHandler):
    rbufsize = 1 << 18

    def handle(self) -> None:
        scratch = memoryview(bytearray(1 << 18))
        while first := self.rfile.readline().decode("latin-1"):
            method, target, _ = first.split(" ")
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if found := re.match(rb"(?i)content-length: *(\d+)", line):
                    length = int(found[1])
            left = length
            while left and (count := self.rfile.readinto(scratch[: min(left, len(scratch))])):
                left -= count
            self.answer(method, target, length)

    def answer(self, method: str, target: str, length: int) -> None:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        body, size = "", None
        if "uploads" in query:
            body = UPLOAD.format(len(uploads))
            uploads[str(len(uploads))] = 0
        elif method == "PUT" and "uploadId" in query:
            uploads[query["uploadId"][0]] += length
        elif method == "POST":
            objects[parts.path] = uploads[query["uploadId"][0]]
            body = COMPLETED
        elif method == "PUT":
            objects[parts.path] = length
        elif method == "HEAD":
            size = objects[parts.path]
        length = len(body) if size is None else size
        head = f'HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: "e"\r\n\r\n'
        self.wfile.write((head + body).encode())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        sys.stdin.read()
        server.shutdown()
