"""Logging goes through the standard library, under the name ``s3dlio``."""

from __future__ import annotations

import logging

from s3dlio._errors import InvalidInputError, shown

TRACE = 5
_LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}

logger = logging.getLogger("s3dlio")


def _on_one_line(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(shown(each) if isinstance(each, str) else each for each in record.args)
    return True


logger.addFilter(_on_one_line)


def init_logging(level: str) -> None:
    """Shows log messages of ``level`` and above on standard error.

    ``level`` is ``'error'``, ``'warn'``, ``'info'``, ``'debug'`` (a line for each object that was written or read
    whole: name, bytes, time) or ``'trace'`` (also one for each read of an open reader); anything else raises
    InvalidInputError.  A second call changes the level.  Programs that set up `logging` themselves need not call this.
    """
    if level not in _LEVELS:
        raise InvalidInputError(f"the log level must be one of {', '.join(_LEVELS)}, not {level!r}")
    logging.addLevelName(TRACE, "TRACE")
    logger.setLevel(_LEVELS[level])
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
