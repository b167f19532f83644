"""Atlases embedded, compared and predicted on a Dask cluster, or by the same tasks in this process where there is none."""

from ._distances import distances
from ._embedding import embed
from ._prediction import predict

__all__ = ["distances", "embed", "predict"]
