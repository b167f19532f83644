"""Times as they stand in columns: numbers, numbers written as strings, or ordered categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scgde.data.populations import as_label, column_labels


@dataclass(frozen=True)
class TimeScale:
    """Times of a column, in order.

    Attributes
    ----------
    labels
        As strings, earliest first.
    values
        Numbers of the same times; ranks where the column has ordered categories that are no numbers.
    is_numeric
        Whether the values are the times themselves.
    """

    labels: list[str]
    values: np.ndarray
    is_numeric: bool

    @classmethod
    def from_column(cls, column: pd.Series, name: str) -> TimeScale:
        """Read the scale off a column of ``obs``.

        Raises
        ------
        ValueError
            If labels have no order: strings that are no numbers, or unordered categories of them.
        """
        present = column_labels(column).dropna().unique().tolist()
        numbers = pd.to_numeric(pd.Series(present, dtype=object), errors="coerce").to_numpy(dtype=float)
        if np.isfinite(numbers).all():
            values = np.unique(numbers)  # "2" and "2.0" are one time
            return cls([as_label(float(v)) for v in values], values, True)
        if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
            labels = [as_label(c) for c in column.cat.categories]
            labels = [label for label in labels if label in set(present)]
            return cls(labels, np.arange(len(labels), dtype=float), False)
        strange = [label for label, number in zip(present, numbers, strict=True) if not np.isfinite(number)]
        message = (
            f"time_key={name!r} holds {strange[:5]}, which are no numbers and have no order. Make it numbers (2, 4, 6), or a categorical "
            f"whose order is that of time: pd.Categorical(obs[{name!r}], categories=[...], ordered=True)."
        )
        raise ValueError(message)

    def position(self, time: Any, argument: str = "time") -> int:
        """Place of a time in :attr:`labels`; numbers match however they are written.

        Raises
        ------
        KeyError
            If there is no such time.
        """
        label = as_label(time)
        if label in self.labels:
            return self.labels.index(label)
        if self.is_numeric:
            try:
                # times that went through single precision are the same times
                same = np.flatnonzero(np.isclose(self.values, float(label), rtol=1e-6, atol=0))
            except ValueError:
                same = np.array([], dtype=int)
            if len(same) == 1:
                return int(same[0])
        message = f"{argument}={time!r} is no time that the model was trained on cells of; there are {self.labels}."
        raise KeyError(message)

    def positions(self, column: pd.Series) -> np.ndarray:
        """Place of the time of each row; -1 where it is missing or unknown."""
        labels = column_labels(column)
        places = {}
        for label in labels.dropna().unique():
            try:
                places[label] = self.position(label)
            except KeyError:
                places[label] = -1
        return labels.map(places).fillna(-1).to_numpy().astype(np.int64)
