"""Leaves out log messages of quantizers that say nothing about a result. Needs no torch: `import hf_pe` calls it."""

import logging

NEWS = "Failed to load CPU gemm_4bit_forward"
"""bitsandbytes looks for a faster CPU kernel on the Hub; without it it uses its own, which is the one that is timed."""


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(NEWS) if isinstance(record.msg, str) else True


def silence() -> None:
    """Leave out the message; others of bitsandbytes are logged as before."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)


def errors_only() -> None:
    """Leave out all log messages of quantizers below errors: the card says which CPU path was timed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
