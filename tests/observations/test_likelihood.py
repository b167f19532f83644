"""Log-likelihoods of counts that skip gamma functions at zeros: the values and gradients of scvi-tools."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from scgde._sparse import entries, row_totals, to_csr, weighted_columns
from scgde.observations import Context
from scgde.observations._likelihood import (
    TABLE_ROWS,
    negative_binomial_log_likelihood,
    poisson_log_likelihood,
)
from scgde.observations.counts import CountModel

KINDS = ("poisson", "nb", "zinb")


def counts(n=40, genes=30, scale=0.6, seed=0):
    """Counts with many zeros, an empty cell, and some larger than any table."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.4, scale / 0.4, (n, genes)))
    x[0] = 0
    x[1, :3] = (TABLE_ROWS, TABLE_ROWS + 1, 2000)
    return sp.csr_matrix(x.astype(np.float32))


def parameters(x, n_groups=1, seed=1, theta_sd=1.5):
    noise = torch.Generator().manual_seed(seed)
    n, genes = x.shape
    logits = torch.randn((n, genes), generator=noise)
    log_theta = theta_sd * torch.randn((n_groups, genes), generator=noise)
    zero_logits = torch.randn(genes, generator=noise) - 1
    library = torch.from_numpy(np.asarray(x.sum(1), dtype=np.float32))
    group = torch.randint(n_groups, (n,), generator=noise)
    return [logits, log_theta, zero_logits], library, group


def ours(kind, x, leaves, library, group):
    logits, log_theta, zero_logits = leaves
    if kind == "poisson":
        return poisson_log_likelihood(x, logits, library)
    return negative_binomial_log_likelihood(
        x, logits, library, log_theta, group, zero_logits if kind == "zinb" else None
    )


def theirs(kind, x, leaves, library, group):
    """Double precision, every count by itself."""
    logits, log_theta, zero_logits = leaves
    scale = torch.softmax(logits, dim=1)
    mu, theta = library.double() * scale, log_theta.exp()[group]
    law = {
        "poisson": lambda: Poisson(rate=mu + 1e-8, validate_args=False),
        "nb": lambda: NegativeBinomial(mu=mu, theta=theta, validate_args=False),
        "zinb": lambda: ZeroInflatedNegativeBinomial(
            mu=mu, theta=theta, zi_logits=zero_logits.expand_as(mu), validate_args=False
        ),
    }[kind]()
    return law.log_prob(torch.from_numpy(x.toarray()).double()).sum(1)


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("n_groups", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_scvi(kind, n_groups, layout):
    x = counts()
    leaves, library, group = parameters(x, n_groups)
    weight = torch.rand(x.shape[0], generator=torch.Generator().manual_seed(2)) + 0.5
    rows = to_csr(x.copy()) if layout == "csr" else torch.from_numpy(x.toarray())
    mine = [leaf.clone().requires_grad_() for leaf in leaves]
    reference = [leaf.double().requires_grad_() for leaf in leaves]
    value, expected = ours(kind, rows, mine, library, group), theirs(kind, x, reference, library, group)
    # the count of 2000 has terms of 13000, of which single precision keeps three digits behind the point
    np.testing.assert_allclose(value.detach(), expected.detach(), rtol=2e-6, atol=2e-3)
    np.testing.assert_allclose(value.detach()[2:], expected.detach()[2:], atol=5e-5)
    (value * weight).sum().backward()
    (expected * weight).sum().backward()
    used = {"poisson": 1, "nb": 2, "zinb": 3}[kind]
    for got, wanted in zip(mine[:used], reference[:used], strict=True):
        np.testing.assert_allclose(got.grad, wanted.grad, atol=3e-6 * float(wanted.grad.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    x = counts(6, 5, seed=3)
    leaves, library, group = parameters(x, 2)
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    rows = torch.from_numpy(x.toarray()).double()
    assert torch.autograd.gradcheck(lambda *p: ours(kind, rows, p, library.double(), group), leaves, atol=1e-4)


def test_gamma_functions_keep_their_digits_where_dispersion_is_next_to_none():
    # lgamma(1e5) is a million, of which single precision keeps no digit behind the point
    x = counts(60, 200, scale=3.0)
    leaves, library, group = parameters(x)
    leaves[1] = torch.full((1, x.shape[1]), 11.5)
    value = ours("nb", to_csr(x.copy()), leaves, library, group)
    exact = theirs("nb", x, [leaf.double() for leaf in leaves], library, group)
    assert float((value - exact).abs().max()) < 0.01
    rough = NegativeBinomial(
        mu=library * torch.softmax(leaves[0], 1), theta=leaves[1].exp().expand(x.shape), validate_args=False
    )
    assert float((rough.log_prob(torch.from_numpy(x.toarray())).sum(1) - exact).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cells_and_extreme_parameters_have_finite_gradients(kind):
    x = counts()
    leaves, library, group = parameters(x)
    leaves[0][3, 4] = 200.0  # one gene takes all
    leaves[1][0, :4] = torch.tensor([-8.0, 12.0, -8.0, 12.0])
    leaves[2][:2] = torch.tensor([300.0, -300.0])
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = ours(kind, to_csr(x.copy()), leaves, library, group)
    value.sum().backward()
    assert torch.isfinite(value).all() and all(torch.isfinite(p.grad).all() for p in leaves if p.grad is not None)
    assert torch.equal(leaves[0].grad[0], torch.zeros(x.shape[1])), "an empty cell says nothing about expression"


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_scores_rows_as_its_laws_do(kind, dispersion):
    x = counts(30, 12)
    torch.manual_seed(0)
    model = CountModel(12, 4, n_hidden=8, gene_likelihood=kind, dispersion=dispersion, n_batch=2)
    noise = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=noise)
    rows = to_csr(x.copy())
    dense = torch.from_numpy(x.toarray())
    for a, b in zip(model.encode(rows), model.encode(dense), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), atol=1e-5)
    u = model.encode(dense)[0]
    context = Context(model.library(rows), torch.randint(2, (30, 1), generator=noise))
    np.testing.assert_allclose(model.library(rows), dense.sum(1, keepdim=True))
    expected = model.decode(u, context).log_prob(dense).sum(1).detach()
    seen = dense.sum(1) > 0  # scvi's Poisson has no value at rate zero
    for given in (rows, dense):
        got = model.log_likelihood(given, u, context).detach()
        np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-5, atol=1e-3)


def test_sparse_rows_are_made_canonical():
    block = sp.csr_matrix((np.array([1.0, 2.0, 0.0, 4.0]), np.array([2, 2, 0, 1]), np.array([0, 3, 3, 4])), (3, 3))
    dense = block.toarray()
    x = to_csr(block)
    np.testing.assert_array_equal(x.to_dense(), dense)
    assert x.values().tolist() == [3.0, 4.0] and x.dtype == torch.float32
    found, same = entries(x), entries(torch.from_numpy(dense).float())
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    np.testing.assert_array_equal(row_totals(x), dense.sum(1, keepdims=True))
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        weighted_columns(found, found.value, weight), dense.astype(np.float32) @ weight.numpy(), atol=1e-6
    )


def test_gradients_of_next_to_no_zero_inflation_keep_their_sign():
    x = counts(64, 200, scale=0.1)
    leaves, library, group = parameters(x, theta_sd=0.0)
    leaves[2] = torch.full((200,), -15.0)
    mine = [leaf.clone().requires_grad_() for leaf in leaves]
    reference = [leaf.double().requires_grad_() for leaf in leaves]
    ours("zinb", to_csr(x.copy()), mine, library, group).sum().backward()
    theirs("zinb", x, reference, library, group).sum().backward()
    np.testing.assert_allclose(mine[2].grad, reference[2].grad, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_raise_and_are_not_silently_wrong(kind):
    x = counts(5, 6)
    leaves, library, group = parameters(x)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = ours(kind, to_csr(x.copy()), leaves, library, group)
    # the gradient of a square depends on the value, and so could be differentiated again in part
    slope = torch.autograd.grad(value.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(slope.square().sum(), leaves[0])
