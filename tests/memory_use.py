"""What a program of the tests begins with that is to tell how much memory it took."""

from __future__ import annotations

# `now("VmRSS")` is what is there, `now("VmHWM")` the most that was (proc(5)).  What getrusage tells is at first that of
# the process which began this one.
NOW = """
import re
from pathlib import Path

def now(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
"""
