from typing import Any

import numpy as np
import torch

ArrayLike = np.ndarray | torch.Tensor


def to_numpy(array: Any) -> np.ndarray:
    """A float64 NumPy array, detached from any graph and copied off any accelerator."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().numpy()
    return np.asarray(array, dtype=np.float64)


def to_tensor(array: Any) -> torch.Tensor:
    """A floating tensor: tensors keep their type, device and graph, anything else becomes float64 on the CPU."""
    if isinstance(array, torch.Tensor):
        return array if array.is_floating_point() else array.to(torch.float64)
    # Torch rejects negative strides and warns about read-only memory, which pandas hands out.
    return torch.from_numpy(np.require(array, np.float64, ["C", "W"]))


def check_cloud(name: str, points: ArrayLike) -> None:
    """Raise unless ``points`` is a non-empty, finite matrix of one point per row."""
    if points.ndim != 2:
        raise ValueError(
            f"`{name}` has shape {tuple(points.shape)}: a point cloud is a matrix (points, dimensions). "
            f"Reshape one-dimensional points with `{name}[:, None]`."
        )
    if points.shape[0] == 0 or points.shape[1] == 0:
        raise ValueError(
            f"`{name}` has shape {tuple(points.shape)}: a distance needs at least one point and one dimension. "
            "Drop empty populations first."
        )
    finite = torch.isfinite(points) if isinstance(points, torch.Tensor) else np.isfinite(points)
    n_bad = int((~finite).sum())
    if n_bad:
        raise ValueError(
            f"`{name}` holds {n_bad} values that are NaN or infinite: distances need finite points. "
            "Remove or impute these rows first."
        )


def check_same_dimension(name_x: str, x: ArrayLike, name_y: str, y: ArrayLike) -> None:
    """Raise unless the two clouds live in the same space."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"`{name_x}` has {x.shape[1]} dimensions and `{name_y}` has {y.shape[1]}: they must be equal. "
            "Give both in the same latent space."
        )


def check_weights(name: str, weights: Any, n_points: int) -> np.ndarray | None:
    """Weights as float64 that sum to one, or None for uniform ones."""
    if weights is None:
        return None
    weights = to_numpy(weights)
    if weights.shape != (n_points,):
        raise ValueError(
            f"`{name}` has shape {weights.shape}: it must hold one weight for each of the {n_points} points. "
            f"Give an array of shape ({n_points},)."
        )
    total = weights.sum()
    if not np.isfinite(total) or (weights < 0).any() or total <= 0:
        raise ValueError(
            f"`{name}` ranges from {weights.min()} to {weights.max()} and sums to {total}: weights must be finite, "
            "not negative and not all zero. Clip or drop the points concerned."
        )
    return weights / total


def as_pair(x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors of one type, on the device of whichever is a tensor already."""
    reference = next((value for value in (x, y) if isinstance(value, torch.Tensor)), None)
    x, y = to_tensor(x), to_tensor(y)
    if reference is not None:
        x, y = x.to(reference.device), y.to(reference.device)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def restore(value: torch.Tensor, as_tensor: bool) -> Any:
    """The value as it is, or as a NumPy array (a scalar where it has no dimensions)."""
    return value if as_tensor else value.numpy()[()]


def check_covariances(name_x: str, cov_x: torch.Tensor, name_y: str, cov_y: torch.Tensor) -> None:
    """Raise unless both are stacks of square matrices of one size."""
    for name, cov in ((name_x, cov_x), (name_y, cov_y)):
        if cov.ndim < 2 or cov.shape[-1] != cov.shape[-2]:
            raise ValueError(
                f"`{name}` has shape {tuple(cov.shape)}: covariances have shape (*, d, d). "
                "Turn variances into matrices with `numpy.diag`."
            )
    if cov_x.shape[-1] != cov_y.shape[-1]:
        raise ValueError(
            f"`{name_x}` has {cov_x.shape[-1]} dimensions and `{name_y}` has {cov_y.shape[-1]}: they must be equal. "
            "Give both in the same latent space."
        )


def check_means(name: str, mean: torch.Tensor, name_cov: str, cov: torch.Tensor) -> None:
    """Raise unless the mean has the dimension of the covariance."""
    if mean.ndim < 1 or mean.shape[-1] != cov.shape[-1]:
        raise ValueError(
            f"`{name}` has shape {tuple(mean.shape)} and `{name_cov}` {tuple(cov.shape)}: the last dimensions must be "
            "equal. Give means (*, d) and covariances (*, d, d)."
        )
