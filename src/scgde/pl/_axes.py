"""Axes of maps of populations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def principal_axes(x: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    r"""Principal axes of the rows of `x`.

    Parameters
    ----------
    x
        ``(n, d)``.

    Returns
    -------
    Axes ``(d, min(n, d))`` as orthonormal columns, and the share of the variance along each. The entry of largest
    modulus of every axis is positive, so that the same data give the same picture everywhere.
    """
    _, singular, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
    total = float((singular**2).sum())
    return (vt * signs[:, None]).T, singular**2 / total if total > 0 else np.zeros_like(singular)


def axes_beyond_noise(
    x: NDArray[np.floating], standard_error: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
    """Principal axes of the rows of `x` as far as they hold more than noise, then axes that the rows had no part in.

    Principal axes of populations of one law are the directions in which noise happens to be largest: a map of them would show
    structure, with populations outside of each other's ellipses. An axis counts as long as the variance along it is beyond 95 % of
    draws with nothing but noise of the given standard errors. The others are coordinates, the noisiest first, orthogonal to these.

    Parameters
    ----------
    x, standard_error
        ``(n, d)``.

    Returns
    -------
    Axes ``(d, min(n, d))`` as orthonormal columns, the share of the variance along each, and the number of principal axes among them.
    """
    axes, share = principal_axes(x)
    error = standard_error[np.isfinite(standard_error).all(axis=1)]
    if len(error) < 2:
        return axes, share, axes.shape[1]
    rng = np.random.default_rng(0)
    total = float(np.square(x - x.mean(axis=0)).sum())
    draws = np.zeros((40, axes.shape[1]))
    for draw in draws:
        noise = rng.standard_normal(x.shape) * error[np.arange(len(x)) % len(error)]
        draw[:] = np.square(np.linalg.svd(noise - noise.mean(axis=0), compute_uv=False))
    n = int(np.cumprod(share * total > np.quantile(draws, 0.95, axis=0)).sum())
    others = np.eye(x.shape[1])[:, np.argsort(-np.square(error).mean(axis=0), kind="stable")]
    basis, _ = np.linalg.qr(np.concatenate([axes[:, :n], others], axis=1))
    basis = basis[:, : axes.shape[1]]
    basis[:, :n] = axes[:, :n]
    moved = np.square((x - x.mean(axis=0)) @ basis).sum(axis=0)
    return basis, moved / total if total > 0 else share, n
