"""Suppress log messages of quantizers that do not concern a result, without torch, since `import hf_pe` does it."""

import logging

NO_HUB_KERNEL = "Failed to load CPU gemm_4bit_forward"
"""Beginning of the message that bitsandbytes has no faster CPU kernel from the Hub and uses its own, which is timed."""


def _is_relevant(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(NO_HUB_KERNEL) if isinstance(record.msg, str) else True


def silence() -> None:
    """Suppress that message; other messages of bitsandbytes are logged as before."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _is_relevant not in logger.filters:
        logger.addFilter(_is_relevant)


def errors_only() -> None:
    """Suppress all log messages of quantizers below errors; the card states which CPU kernel was timed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
