"""Counts: an autoencoder with a ZINB, negative binomial or Poisson likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.nn import FCLayers
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scgde._sparse import entries, row_totals, supports_sparse, to_csr, weighted_columns
from scgde.components import MAX_COMPONENTS
from scgde.moments import moment_features, moment_size
from scgde.observations._depth import DepthMap
from scgde.observations._draws import draw_counts
from scgde.observations._likelihood import negative_binomial_log_likelihood, poisson_log_likelihood
from scgde.observations._loadings import fit_loadings
from scgde.observations.base import Context, ObservationModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from torch.distributions import Distribution

    from scgde.components import CellComponents

GENE_GAIN = 5.0
"""Dispersions and zero inflation of genes learn this many times faster than weights. A step moves a parameter by about the
learning rate, and log dispersions span -3 to 5: a few hundred steps would leave abundant genes far too noisy."""

LOADING_SD = 0.07
"""Prior standard deviation of a decoder weight that leads to a gene. It is what keeps thousands of genes from being learned
by heart from a thousand cells, and is nothing beside a hundred thousand."""

LOG_DISPERSION = (-8.0, 12.0)
"""Range of log inverse dispersions."""

MIN_SCALE = 0.02
"""Smallest scale of an axis of the latent, next to a mean square of one: an axis that changes nothing must stay invertible."""

LATENT_SD = 0.3
"""Posterior standard deviation of the latent before training; its prior has one."""

MULTIPLE = 16
"""Numbers of single precision in a vector of a processor."""

CountLikelihood = Literal["zinb", "nb", "poisson"]


class CountModel(ObservationModel):
    """Variational autoencoder of counts in the manner of scVI (Lopez et al. 2018), started from its linear counterpart.

    The encoder sees the principal components of log-normalised counts, the depth, and never the batch; the decoder is
    conditioned on batch and covariates. What they explain therefore costs nothing to leave out of ``u`` and something to
    put in. There is no normalisation layer: it would bend the latent and with it every distance (batch norm would also
    couple cells).

    Both halves are a linear map plus a network whose output starts at zero. :meth:`warm_start` sets the linear maps: ``u``
    to the leading components in units of their spread, and the loadings of genes on them to a regression. Training starts
    from a fitted factor model, so that a few passes over few cells are enough. Weights that lead to genes have a normal
    prior (:data:`LOADING_SD`).

    Parameters
    ----------
    n_vars
        Number of genes.
    n_latent
        Width of the latent.
    n_hidden, n_layers
        Width and number of hidden layers of encoder and decoder.
    gene_likelihood
        ``"zinb"``, ``"nb"`` or ``"poisson"``.
    dispersion
        One inverse dispersion for each gene (``"gene"``) or for each gene and batch (``"gene-batch"``).
    expression_weight
        How the axes of ``u`` weigh against each other once it is trained: 0 in units of the prior, so that all weigh alike, 1
        by what they change in log-normalised expression, between them by that to this power (:meth:`fit_scale`).
    n_batch
        Number of batches.
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    """

    is_learned = True
    is_count = True
    reads_sparse = True
    centre: Tensor
    axes: Tensor
    target: Tensor
    library_coefficients: Tensor
    covariate_centre: Tensor
    covariate_scale: Tensor

    def __init__(
        self,
        n_vars: int,
        n_latent: int,
        *,
        n_hidden: int = 128,
        n_layers: int = 2,
        gene_likelihood: CountLikelihood = "zinb",
        dispersion: Literal["gene", "gene-batch"] = "gene",
        expression_weight: float = 0.5,
        n_batch: int = 1,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
    ) -> None:
        super().__init__(n_latent)
        self.gene_likelihood = gene_likelihood
        self.dispersion = dispersion
        self.expression_weight = expression_weight
        layers = {"n_hidden": n_hidden, "use_batch_norm": False, "use_layer_norm": False, "dropout_rate": 0.0}
        n_components = min(MAX_COMPONENTS, n_vars)
        self.encoder = FCLayers(n_components + 1, n_hidden, n_layers=n_layers, **layers)
        self.encoder_linear = nn.Linear(n_components, n_latent, bias=False)
        self.encoder_mean = nn.Linear(n_hidden, n_latent)
        self.encoder_log_var = nn.Linear(n_hidden, n_latent)
        nn.init.eye_(self.encoder_linear.weight)
        for head in (self.encoder_mean, self.encoder_log_var):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.encoder_log_var.bias, 2 * math.log(LATENT_SD))
        self.decoder = FCLayers(
            n_latent + n_continuous,
            n_hidden,
            n_cat_list=[n_batch, *n_categories],
            n_layers=max(n_layers - 1, 1),
            **layers,
        )
        self.decoder_linear = nn.Linear(n_latent, n_vars, bias=False)
        self.decoder_scale = nn.Linear(n_hidden, n_vars)
        self.register_buffer("centre", torch.zeros(n_vars))
        self.register_buffer("axes", torch.eye(n_vars, n_components))
        self.register_buffer("target", torch.ones(()))
        self.register_buffer("covariate_centre", torch.zeros(n_continuous))
        self.register_buffer("covariate_scale", torch.ones(n_continuous))
        self.register_buffer("library_coefficients", torch.zeros(1 + moment_size(n_latent)))
        self.depth_map = DepthMap(n_latent)
        if gene_likelihood != "poisson":
            n_dispersion = n_batch if dispersion == "gene-batch" else 1
            self.scaled_log_dispersion = nn.Parameter(torch.zeros(n_dispersion, n_vars))
        if gene_likelihood == "zinb":
            # One logit for each gene: logits decoded from the latent, as in scVI, fit held-out cells worse. They start
            # at next to no zero inflation, since a negative binomial explains most zeros.
            self.scaled_zero_inflation = nn.Parameter(torch.full((n_vars,), -3.0 / GENE_GAIN))

    @property
    def log_dispersion(self) -> Tensor:
        """Log inverse dispersions, ``(1 or n_batch, n_vars)``."""
        return GENE_GAIN * self.scaled_log_dispersion

    @torch.no_grad()
    def fit(self, mean: Tensor, variance: Tensor, size_factor_gain: float) -> None:
        self.size_factor_gain.fill_(size_factor_gain)

    @torch.no_grad()
    def warm_start(self, components: CellComponents, rows: np.ndarray, library: np.ndarray) -> None:
        r = len(components.sd)
        self.target.fill_(components.target)
        self.centre.copy_(torch.from_numpy(components.centre))
        # inputs of the network in units of the first component's spread; data of few cells have fewer components
        unit = float(components.sd[0])
        unit = unit if unit > 1e-4 else 1.0  # cells that do not differ: nothing to scale up but rounding errors
        self.axes.zero_()[:, :r] = torch.from_numpy(components.axes / unit)
        d = min(self.n_latent, r)
        sd = np.maximum(components.sd[:d], 1e-3 * unit)
        self.encoder_linear.weight.zero_()[range(d), range(d)] = torch.from_numpy(unit / sd).float()
        seen = library > 0
        if not seen.any():
            return
        rows, library = rows[seen], library[seen]
        # the network's part of the encoder still is zero
        u = self.encode(torch.from_numpy(rows).to(self.axes.device))[0].cpu().numpy()
        overdispersed = self.gene_likelihood != "poisson"
        intercept, loadings, log_dispersion = fit_loadings(rows, library, u, LOADING_SD, overdispersed=overdispersed)
        self.decoder_scale.weight.zero_()
        self.decoder_scale.bias.copy_(torch.from_numpy(intercept))
        self.decoder_linear.weight.copy_(torch.from_numpy(loadings))
        if overdispersed:
            self.scaled_log_dispersion.copy_(torch.from_numpy(log_dispersion / GENE_GAIN))

    def penalty(self) -> Tensor:
        squares = self.decoder_linear.weight.square().sum() + self.decoder_scale.weight.square().sum()
        return squares / (2 * LOADING_SD**2)

    @property
    def n_components(self) -> int:
        return self.axes.shape[1]

    def components(self, x: Tensor) -> Tensor:
        return self._scores(x)[0]

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Principal components of log-normalised counts ``(cells, r)``, and depths ``(cells, 1)``."""
        found = entries(x)
        depth = found.row_sums(found.value)[:, None].clamp_min(1.0)
        values = torch.log1p(found.value * (self.target / depth)[:, 0].index_select(0, found.row))
        return weighted_columns(found, values, self.axes) - self.centre @ self.axes, depth

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, depth = self._scores(x)
        hidden = self.encoder(torch.cat([scores, torch.log(depth / self.target)], dim=1))
        log_var = self.encoder_log_var(hidden).clamp(-12.0, 6.0)
        mean, sd = self.encoder_linear(scores) + self.encoder_mean(hidden), torch.exp(0.5 * log_var)
        return self.depth_map(mean * self.latent_scale, sd * self.latent_scale, depth)

    @torch.no_grad()
    def fit_depth(self, counts: sp.csr_matrix) -> None:
        """Fit the map that makes latents of cells of all depths alike (:class:`~scgde.observations._depth.DepthMap`)."""
        device, sparse = self.centre.device, supports_sparse(self.centre.device)

        def encode(block: sp.csr_matrix) -> tuple[Tensor, Tensor]:
            parts = [
                self.encode((to_csr(part) if sparse else torch.from_numpy(part.toarray())).to(device))
                for part in (block[start : start + 1024] for start in range(0, block.shape[0], 1024))
            ]
            mean, sd = zip(*parts, strict=True)
            return torch.cat(mean), torch.cat(sd)

        self.depth_map.fit(counts, encode)

    def reset_depth(self) -> None:
        self.depth_map.reset()

    def library(self, x: Tensor) -> Tensor:
        return row_totals(x)

    def log_library(self, u: Tensor) -> Tensor:
        return self._library_features(u) @ self.library_coefficients[:, None]

    def _library_features(self, u: Tensor) -> Tensor:
        """One, and the moment features of ``u`` in units of its prior, ``(cells, 1 + m)``; far entries are pulled in."""
        u = (u / self.latent_scale).clamp(-4.0, 4.0)
        return torch.cat([torch.ones_like(u[:, :1]), moment_features(u)], dim=1)

    @torch.no_grad()
    def fit_library(self, u: Tensor, library: Tensor) -> None:
        # Depth and state go together (large cells, cycling cells, one dominant gene). Ridge regression says how, after
        # the latent is fixed, so that it never bends the latent; its penalty is cross-validated, since small data
        # have fewer cells than features. Empty cells have no log library size.
        seen = library[:, 0] > 0
        if not seen.any():
            return
        features = self._library_features(u[seen]).double().cpu().numpy()[:, 1:]
        target = library[seen, 0].double().log().cpu().numpy()
        scaler = StandardScaler().fit(features)
        slope, intercept = np.zeros(features.shape[1]), float(target.mean())
        if len(target) > 2 and np.ptp(target) > 0:
            ridge = RidgeCV(alphas=np.logspace(-1, 6, 29)).fit(scaler.transform(features), target)
            slope = ridge.coef_ / scaler.scale_
            intercept = float(ridge.intercept_ - scaler.mean_ @ slope)
        coefficients = torch.from_numpy(np.concatenate([[intercept], slope]))
        self.library_coefficients.copy_(coefficients.to(self.library_coefficients))

    @torch.no_grad()
    def fit_covariates(self, continuous: Tensor) -> None:
        self.covariate_centre.copy_(continuous.mean(0))
        spread = continuous.std(0, correction=0)
        self.covariate_scale.copy_(torch.where(spread > 0, spread, 1.0))

    @torch.no_grad()
    def fit_scale(self, u: Tensor, context: Context) -> None:
        """Scale every axis by the change of log-normalised expression along it, to the power ``expression_weight``.

        The prior gives all axes the same spread, whether they move expression much or hardly, which no distance between cells
        should do. The change is the root mean square over cells of the norm of the decoder's derivative, the diagonal of its
        pull-back metric (Arvanitidis et al. 2018, arXiv 1710.11379); a scaled axis keeps a diagonal posterior diagonal. At
        power 1 distances are, to first order, those of decoded expression; between simulated clones they are closest to the
        truth, and real populations are found again by their other half less often (``benchmarks/simulated.py``,
        ``benchmarks/retrieval.py``).
        """

        def expression(v: Tensor) -> Tensor:
            return torch.log1p(self.target * self.profile(self.decode(v, context)))

        change = []
        for axis in torch.eye(self.n_latent, dtype=u.dtype, device=u.device):
            # forward mode: one column of the Jacobian, at all cells at once
            slope: Tensor = torch.func.jvp(expression, (u,), (axis.expand_as(u),))[1]
            change.append(slope.square().sum(dim=1).mean().sqrt())
        scale = (torch.stack(change) * self.latent_scale).clamp_min(1e-12) ** self.expression_weight
        scale = scale / scale.square().mean().sqrt()
        self.latent_scale.copy_(scale.clamp_min(MIN_SCALE))

    def _logits(self, u: Tensor, context: Context) -> Tensor:
        """Logits of the shares of genes, ``(cells, n_vars)``."""
        u = u / self.latent_scale
        inputs = u
        if context.continuous is not None:
            # in standard units: an age in years or a count of thousands would drown the latent
            inputs = torch.cat([u, (context.continuous - self.covariate_centre) / self.covariate_scale], dim=1)
        codes = [] if context.categorical is None else list(context.categorical.split(1, dim=1))
        hidden = self.decoder(inputs, context.batch, *codes)
        # one product for both halves: matrices of cells and genes are what takes time, and less of it where rows fill whole vectors
        halves = [self.decoder_linear.weight, self.decoder_scale.weight]
        lacking = -(u.shape[1] + hidden.shape[1]) % MULTIPLE
        weight = torch.cat([*halves, halves[0].new_zeros((len(halves[0]), lacking))], dim=1)
        inputs = torch.cat([u, hidden, u.new_zeros((len(u), lacking))], dim=1)
        return F.linear(inputs, weight, self.decoder_scale.bias)

    def log_likelihood(self, x: Tensor, u: Tensor, context: Context) -> Tensor:
        # counts of hundreds, and sums over thousands of genes, are not for half precision
        logits = self._logits(u, context).to(self.centre.dtype)
        if self.gene_likelihood == "poisson":
            return poisson_log_likelihood(x, logits, context.library)
        group = context.batch[:, 0] if self.dispersion == "gene-batch" else None
        zero = GENE_GAIN * self.scaled_zero_inflation if self.gene_likelihood == "zinb" else None
        log_theta = self.log_dispersion.clamp(*LOG_DISPERSION)
        return negative_binomial_log_likelihood(x, logits, context.library, log_theta, group, zero)

    def decode(self, u: Tensor, context: Context) -> Distribution:
        scale = torch.softmax(self._logits(u, context), dim=1)
        mu = context.library * scale
        if self.gene_likelihood == "poisson":
            return Poisson(rate=mu, scale=scale, validate_args=False)
        log_theta: Tensor = self.log_dispersion
        log_theta = log_theta[context.batch[:, 0]] if self.dispersion == "gene-batch" else log_theta.expand_as(mu)
        theta = torch.exp(log_theta.clamp(*LOG_DISPERSION))
        if self.gene_likelihood == "nb":
            return NegativeBinomial(mu=mu, theta=theta, scale=scale, validate_args=False)
        logits = (GENE_GAIN * self.scaled_zero_inflation).expand_as(mu)
        return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits, scale=scale, validate_args=False)

    def profile(self, law: Any) -> Tensor:
        return law.scale

    def draw(self, law: Any, generator: torch.Generator) -> Tensor:
        """Integer counts; scvi's own ``sample`` draws from global randomness."""
        if isinstance(law, Poisson):
            return draw_counts(law.rate, generator=generator)
        extra = torch.sigmoid(law.zi_logits) if isinstance(law, ZeroInflatedNegativeBinomial) else None
        return draw_counts(law.mu, law.theta, extra, generator)
