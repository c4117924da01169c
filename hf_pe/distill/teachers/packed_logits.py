"""Stores the most likely classes of a position in 30 bits each: the class, and its log-probability in the rest."""

from typing import Any

import numpy as np

from hf_pe.errors import UsageError

BITS = 30
"""Bits of one stored class with its log-probability: 3.75 bytes."""
FLOOR = 24.0
"""Log-probabilities below -FLOOR are stored as -FLOOR."""


def packed(log_probs: np.ndarray[Any, Any], classes: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return the most likely classes of each position as bytes.

    Args:
        log_probs: in falling order. *Shape:* (positions, k)
        classes: the classes that they belong to. *Shape:* (positions, k)
        count: number of all classes.

    Returns:
        uint8. *Shape:* (positions, ceil(30 k / 8))
    """
    width = _class_bits(count)
    steps = (1 << (BITS - width)) - 1
    levels = np.rint(np.clip(-log_probs, 0, FLOOR) / FLOOR * steps).astype(np.uint32)
    words = (levels | (classes.astype(np.uint32) << np.uint32(BITS - width))).astype(">u4")
    bits = np.unpackbits(words.view(np.uint8).reshape(*words.shape, 4), axis=-1)[..., 32 - BITS :]
    return np.packbits(bits.reshape(len(words), -1), axis=-1)


def unpacked(flat: np.ndarray[Any, Any], k: int, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the log-probabilities (float32) and classes (int64), each [positions, k], from the bytes of `packed`.

    Args:
        flat: bytes of all positions, one after another.
        k: number of classes per position.
        count: number of all classes.

    Example:
        >>> import numpy as np
        >>> log_probs, classes = np.log([[0.7, 0.2]]), np.array([[1234, 7]])
        >>> restored = unpacked(packed(log_probs, classes, 50000).flatten(), 2, 50000)
        >>> restored[0].round(2), restored[1]
        (array([[-0.36, -1.61]], dtype=float32), array([[1234,    7]]))
    """
    width = _class_bits(count)
    bits = np.unpackbits(flat.reshape(-1, -(-BITS * k // 8)), axis=-1)[:, : BITS * k].reshape(-1, k, BITS)
    padded = np.concatenate([np.zeros((*bits.shape[:2], 32 - BITS), np.uint8), bits], -1)
    words = np.packbits(padded, axis=-1).view(">u4")[..., 0].astype(np.uint32)
    steps = (1 << (BITS - width)) - 1
    log_probs = -(words & np.uint32(steps)).astype(np.float32) * np.float32(FLOOR / steps)
    return log_probs, (words >> np.uint32(BITS - width)).astype(np.int64)


def _class_bits(count: int) -> int:
    width = max(int(count - 1).bit_length(), 1)
    if width > BITS - 8:
        raise UsageError(f"distil.cache: {count} classes are more than a cache can number ({1 << (BITS - 8)}).")
    return width
