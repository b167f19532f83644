"""An encoder that starts as a linearised optimal-transport embedding: for populations whose shape is not a normal's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgde._networks import mlp
from scgde._segments import normalised_weights, pad_sets
from scgde.encoders._axes import LEAST_GAIN, ReliableAxes, halves, principal_axes, sets_without_labels
from scgde.encoders.base import GatedEncoder
from scgde.moments import moment_size, to_vector
from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from scgde.moments import PopulationMoments

_ENTRIES_PER_PASS = 2**23


N_SETS, SET_SIZE = 256, 128
"""Sets without labels that axes are chosen from, and cells in each."""


class TransportEncoder(GatedEncoder):
    r"""Mean, square-root covariance and what is left of the transport map from a normal reference, then a correction.

    The map :math:`T` that carries a fixed normal law to a population is a Euclidean picture of Wasserstein space: the
    distance :math:`(\mathrm{E}\|T_i - T_j\|^2)^{1/2}` is at least W2 and close to it (linear optimal transport, Wang et al.
    2013, IJCV 101, 254-269). Its constant part is the mean and its linear part, for a normal population, the root of the
    covariance. Both are taken from moments, which few cells determine well, and the rest from an entropic map between
    the cells and a sample of the reference that has been given their mean and covariance.

    Coordinates are the principal axes of each of the three parts over the training populations, scaled by the square root of
    their reliability (the correlation of two halves of a population): sampling noise then adds to the distance of two
    populations what their noiseless difference lacks, and neither small nor unreliable parts are favoured. A learned
    weight for each and a network that starts at zero follow.

    Without a pooled form, standard errors of large populations cost one backward pass for each coordinate. The default
    encoder serves as well where populations are close to normal, and in more than about ten dimensions, where the map is
    not learned from tens of cells.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden
        See :class:`~scgde.encoders.SetEncoder`.
    n_reference
        Points of the reference.
    n_axes
        Principal axes of the remainder at most.
    blur
        Entropic regularisation: its temperature over twice a population's mean variance.
    """

    # Without a cell the whole map moves a little, and extrapolating from that adds more noise than it removes bias. Few cells
    # keep their bias.
    jackknife_max = 0
    wants_exact_targets = True
    reference: Tensor
    reference_root: Tensor
    centre: Tensor
    axes: Tensor
    gain: Tensor
    projection: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(
        self,
        n_latent: int,
        n_embedding: int,
        n_hidden: int = 128,
        n_reference: int = 128,
        n_axes: int = 64,
        blur: float = 0.1,
    ) -> None:
        super().__init__(n_latent, n_embedding)
        self.blur = blur
        self.n_moments = moment_size(n_latent)
        n_raw = self.n_moments + n_reference * n_latent
        n_coordinates = self.n_moments + min(n_axes, n_reference * n_latent)
        reference = torch.randn(
            (n_reference, n_latent), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        reference = reference - reference.mean(0)
        cov = reference.T @ reference / n_reference
        reference = reference @ torch.linalg.inv(sqrtm_psd(cov)) if n_reference > n_latent else reference
        self.register_buffer("reference", reference.float())
        self.register_buffer("reference_root", torch.eye(n_latent))
        self.register_buffer("centre", torch.zeros(n_raw))
        self.register_buffer("axes", torch.eye(n_raw, n_coordinates))
        self.register_buffer("gain", torch.ones(n_coordinates))
        self.register_buffer("projection", torch.eye(n_coordinates, n_embedding))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("spread", torch.ones(n_coordinates))
        self.log_weight = nn.Parameter(torch.zeros(n_coordinates))
        self.residual = mlp(n_coordinates, n_hidden, n_embedding, zero=True)
        self.gate_logit = nn.Parameter(torch.zeros(()))

    def straight_and_correction(
        self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        coordinates = (self.parts(u, segment, weight, n_sets) - self.centre) @ self.axes * self.gain
        straight = (coordinates * self.log_weight.exp()) @ self.projection
        return straight, self.residual(coordinates / self.spread) * (0.3 * self.scale)

    def learning_rate_factor(self, name: str) -> float:
        return 5.0 if name == "log_weight" else super().learning_rate_factor(name)

    def parts(self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int) -> Tensor:
        """Mean, root of the covariance and remainder of the map of each set, laid out as one vector: ``(n_sets, m)``."""
        share = normalised_weights(segment, n_sets, weight, u.dtype)
        index, present = pad_sets(segment, n_sets)
        step = max(_ENTRIES_PER_PASS // max(index.shape[1] * len(self.reference), 1), 1)
        blocks = [
            self._parts(u[index[i : i + step]], share[index[i : i + step]] * present[i : i + step])
            for i in range(0, n_sets, step)
        ]
        return torch.cat(blocks) if blocks else u.new_zeros((0, len(self.centre)))

    def _parts(self, u: Tensor, w: Tensor) -> Tensor:
        """The same for padded sets ``(K, n, d)`` with weights ``(K, n)`` that are zero where a set has ended."""
        w64 = w.double()
        mean = torch.einsum("kn,knd->kd", w64, u.double())
        centred = u.double() - mean[:, None]
        cov = torch.einsum("kn,kni,knj->kij", w64, centred, centred)
        root = sqrtm_psd(cov)
        p = self.reference_root.double()
        inverse = torch.linalg.inv(p)
        to_population = inverse @ sqrtm_psd(p @ cov @ p) @ inverse @ p
        start = torch.einsum("rj,kij->kri", self.reference.double(), to_population)
        moved = entropic_map(start, centred, w64, self.blur)
        remainder = (moved - start).flatten(1) * len(self.reference) ** -0.5
        return torch.cat([to_vector(mean, root), remainder], dim=1).to(u.dtype)

    def pass_cost(self, sizes: Tensor) -> Tensor:
        # a plan between all cells and the reference, kept for every iteration
        return sizes * (16 * len(self.reference))

    def inverse(self) -> Tensor:
        return (self.axes[: self.n_moments] / self.gain.clamp_min(LEAST_GAIN)) @ self.projection

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        self.reference_root.copy_(sqrtm_psd(moments.pooled_covariance().double()))
        split = halves(segment, set_size)
        if split is None:  # no population can be split
            self.centre.copy_(self.parts(u, segment, None, moments.mean.shape[0]).mean(0))
            return
        (a, b), ratio = (
            [self.parts(u[rows], *_renumbered(segment[rows])).double() for rows in split[0]],
            split[1],
        )
        centre = (a + b).mean(0) / 2
        a, b = a - centre, b - centre
        d, m, q = self.n_latent, self.n_moments, len(self.gain)
        rows, sets = sets_without_labels(u, N_SETS, SET_SIZE)
        free = self.parts(u[rows], sets, None, N_SETS).double()
        axes = ReliableAxes.fit(
            free, a, b, [(0, d, d, LEAST_GAIN), (d, m, m - d, LEAST_GAIN), (m, len(centre), q - m, 0.0)], ratio
        )
        scaled = torch.cat([a, b]) @ axes.basis * axes.gain
        spread = scaled.square().mean(0).sqrt()
        self.centre.copy_(centre)
        self.axes.copy_(axes.basis)
        self.gain.copy_(axes.gain)
        self.spread.copy_(spread.clamp_min(1e-3 * spread.max().clamp_min(1e-6)))
        loose = (free - free.mean(0)) @ axes.basis * axes.gain
        self.projection.copy_(principal_axes(loose, d, self.n_embedding))
        self.scale.copy_((scaled @ self.projection.double()).square().sum(1).mean().sqrt().clamp_min(1e-6))


def _renumbered(segment: Tensor) -> tuple[Tensor, None, int]:
    """Codes of the sets that are there, no weights, and the number of sets: arguments of :meth:`TransportEncoder.parts`."""
    present, codes = torch.unique(segment, return_inverse=True)
    return codes, None, len(present)


def entropic_map(start: Tensor, x: Tensor, w: Tensor, blur: float, n_iterations: int = 12) -> Tensor:
    """Where the entropic plan sends each reference point on average, ``(K, R, d)``.

    Sinkhorn's iterations between uniform points ``start`` ``(K, R, d)`` and points ``x`` ``(K, n, d)`` of weights ``w``
    ``(K, n)``. Twelve are enough for a picture of a population; the plan need not be exact.
    """
    scale = torch.einsum("kn,knd->k", w, x.square()) / x.shape[2]
    temperature = (2 * blur * scale).clamp_min(1e-12)[:, None, None]
    cost = torch.cdist(start, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    # The plan is sought as a scaling of rows and columns of a kernel. A point far from all of the reference would have a
    # column of zeros; subtracting each column's least cost is a scaling too.
    kernel = (-(cost - cost.amin(1, keepdim=True)) / temperature).exp()
    column = torch.ones_like(w)
    for _ in range(n_iterations):
        row = (kernel @ (w * column)[:, :, None]).clamp_min(1e-300).reciprocal()
        column = (kernel.mT @ row)[:, :, 0].clamp_min(1e-300).reciprocal() * kernel.shape[1]
    mass = w * column
    row = (kernel @ mass[:, :, None]).clamp_min(1e-300).reciprocal()
    return row * (kernel @ (mass[:, :, None] * x))
