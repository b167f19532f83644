"""Products of whole sets: what sums over cells give, for even and uneven sizes, in any order of cells."""

import pytest
import torch

from scgde import _segments
from scgde._segments import gram_by_set, is_even, matmul_by_set


def ragged(sizes, d, seed=0):
    noise = torch.Generator().manual_seed(seed)
    segment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.randperm(len(segment), generator=noise)
    return torch.randn((len(segment), d), generator=noise, dtype=torch.float64), segment[order]


@pytest.mark.parametrize("sizes", [[5, 5, 5], [3, 0, 7, 1], [1000] + [1] * 30, [4]])
def test_products_by_set_are_sums_over_cells(sizes):
    a, segment = ragged(sizes, 3)
    b, _ = ragged(sizes, 2, seed=1)
    k = len(sizes)
    expected = torch.zeros(k, 3, 2, dtype=a.dtype).index_add_(0, segment, a[:, :, None] * b[:, None, :])
    torch.testing.assert_close(gram_by_set(a, b, segment, k), expected)
    matrices = torch.randn((k, 3, 4), generator=torch.Generator().manual_seed(2), dtype=a.dtype)
    torch.testing.assert_close(matmul_by_set(a, matrices, segment), torch.einsum("ni,nij->nj", a, matrices[segment]))


def test_one_large_set_among_many_small_ones_is_not_padded():
    _, segment = ragged([1000] + [1] * 30, 1)
    assert not is_even(segment, 31) and is_even(segment[segment > 0] - 1, 30)


def test_gradients_flow_through_both_ways(monkeypatch):
    a, segment = ragged([3, 4, 2], 2)
    matrices = torch.randn((3, 2, 2), dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    grads = []
    for most in (4, 0):
        monkeypatch.setattr(_segments, "MAX_PADDING", most)
        x, m = a.clone().requires_grad_(), matrices.clone().requires_grad_()
        (matmul_by_set(x, m, segment).square().sum() + gram_by_set(x, x, segment, 3).square().sum()).backward()
        grads.append((x.grad, m.grad))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_no_cells_give_nothing():
    a, segment = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert torch.equal(gram_by_set(a, a, segment, 2), torch.zeros(2, 2, 2))
    assert matmul_by_set(a, torch.ones(2, 2, 3), segment).shape == (0, 3)


def test_no_sets_and_values_that_are_not_finite_stay_by_themselves():
    a = torch.zeros(0, 2)
    assert gram_by_set(a, a, torch.zeros(0, dtype=torch.long), 0).shape == (0, 2, 2)
    a, segment = torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    a[0, 0] = torch.inf
    assert torch.equal(gram_by_set(a, a, segment, 2)[1], torch.full((2, 2), 2.0))
