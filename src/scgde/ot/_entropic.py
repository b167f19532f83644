import math

import torch

# Scaling iterations between two updates of the potentials in the log domain.
_BLOCK = 40


def entropic_cost(
    x: torch.Tensor,
    weights_x: torch.Tensor,
    y: torch.Tensor,
    weights_y: torch.Tensor,
    epsilon: torch.Tensor,
    n_iterations: int,
    tolerance: float,
    *,
    same: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropic transport costs ``(B,)`` of a batch, differentiable in the points, and residuals of the marginals ``(B,)``.

    ``same`` says that the clouds of each pair are one, for which symmetric updates converge in a few steps.
    """
    cost = torch.cdist(x.detach(), y.detach(), compute_mode="donot_use_mm_for_euclid_dist").square_()
    keep_plan = x.requires_grad or y.requires_grad
    value, plan, residual = _solve(cost, weights_x, weights_y, epsilon, n_iterations, tolerance, same, keep_plan)
    if plan is not None:
        # The gradient of <plan, cost> with the plan held fixed, through products of the size of the points.
        linear = (plan.sum(2) * x.square().sum(-1)).sum(1) + (plan.sum(1) * y.square().sum(-1)).sum(1)
        linear = linear - 2 * (x * (plan @ y)).sum((1, 2))
        value = value + (linear - linear.detach())
    return value, residual


def _solve(
    cost: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    epsilon: torch.Tensor,
    n_iterations: int,
    tolerance: float,
    same: bool,
    keep_plan: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Dual values ``(B,)``, plans ``(B, n, m)`` if they are kept, and residuals ``(B,)`` for costs ``(B, n, m)``."""
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    largest = cost.amax((1, 2))
    # Scalings beyond this are cut; the next update in the log domain makes up for it.
    limit = math.exp(math.log(torch.finfo(cost.dtype).max) / 4)
    n_steps = int(torch.log2((largest / epsilon).clamp_min(1)).amax().div(2).ceil())
    for step in range(n_steps):
        f, g = _update(cost, f, g, log_a, log_b, torch.maximum(largest * 0.25**step, epsilon), same)

    dual, error = torch.zeros_like(epsilon), torch.zeros_like(epsilon)
    plans = torch.zeros_like(cost) if keep_plan else None
    active = torch.arange(len(cost), device=cost.device)
    done = n_steps
    while True:
        f, g = _update(cost, f, g, log_a, log_b, epsilon, same)
        plan = _plan(cost, f, g, log_a, log_b, epsilon)
        row, column = plan.sum(2), plan.sum(1)
        residual = torch.maximum((row - a).abs().sum(1), (column - b).abs().sum(1))
        done += 1
        # The mass of the plan is one only once the marginals are right.
        dual[active] = (a * f).sum(1) + (b * g).sum(1) - epsilon * (row.sum(1) - 1)
        error[active] = residual
        if plans is not None:
            plans[active] = plan
        left = residual > tolerance
        n_left = int(left.sum())
        if n_left == 0 or done >= n_iterations:
            return dual, plans, error
        if n_left <= len(left) / 2:
            active = active[left]
            a, b, f, g, log_a, log_b = (value[left] for value in (a, b, f, g, log_a, log_b))
            epsilon, cost, plan = epsilon[left], cost[left], plan[left]

        u, v = torch.ones_like(a), torch.ones_like(b)
        for _ in range(min(_BLOCK, n_iterations - done)):
            u_new = _ratio(a, torch.bmm(plan, v.unsqueeze(2)).squeeze(2), limit)
            if same:
                u = v = (u * u_new).sqrt()
            else:
                u = u_new
                v = _ratio(b, torch.bmm(u.unsqueeze(1), plan).squeeze(1), limit)
            done += 1
        f = f + epsilon[:, None] * u.log()
        g = f if same else g + epsilon[:, None] * v.log()


def _update(
    cost: torch.Tensor,
    f: torch.Tensor,
    g: torch.Tensor,
    log_a: torch.Tensor,
    log_b: torch.Tensor,
    epsilon: torch.Tensor,
    same: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    e = epsilon[:, None]
    f_new = -e * torch.logsumexp((log_b + g / e).unsqueeze(1) - cost / e.unsqueeze(2), dim=2)
    if same:
        f_new = (f + f_new) / 2
        return f_new, f_new
    return f_new, -e * torch.logsumexp((log_a + f_new / e).unsqueeze(2) - cost / e.unsqueeze(2), dim=1)


def _plan(
    cost: torch.Tensor,
    f: torch.Tensor,
    g: torch.Tensor,
    log_a: torch.Tensor,
    log_b: torch.Tensor,
    epsilon: torch.Tensor,
) -> torch.Tensor:
    e = epsilon[:, None]
    exponent = (log_a + f / e).unsqueeze(2) + (log_b + g / e).unsqueeze(1)
    return exponent.sub_(cost / e.unsqueeze(2)).exp_()


def _ratio(target: torch.Tensor, present: torch.Tensor, limit: float) -> torch.Tensor:
    """Scalings towards a marginal; points of weight zero keep theirs."""
    known = target > 0
    return torch.where(known, target / torch.where(known, present, 1.0), 1.0).clamp(1 / limit, limit)
