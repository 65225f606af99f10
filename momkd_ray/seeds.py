"""Derives seeds from what identifies a random draw, never from rank or time."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Derives a 56-bit seed from the parts that identify a draw.

    The same parts give the same seed on every machine and for every number of workers.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
