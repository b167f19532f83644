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
