"""Seeds as users give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scvi import settings


def resolve_seed(seed: Any) -> int | None:
    """The seed of a call, or that of scvi-tools; None for fresh randomness.

    Raises
    ------
    TypeError, ValueError
        If it is no non-negative integer.
    """
    seed = settings.seed if seed is None else seed
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        message = f"seed={seed!r} must be a non-negative integer, or None."
        raise TypeError(message)
    if seed < 0:
        message = f"seed={seed!r} must be a non-negative integer, or None."
        raise ValueError(message)
    return int(seed)
