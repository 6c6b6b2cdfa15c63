"""Flow matching from eight Gaussians to two moons: pairs drawn at random against pairs drawn from a transport plan.

python examples/ot_flow_matching.py
"""

import argparse
import math

import torch

import ucmkd_fast as uk

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()


def eight_gaussians(n):
    """On a circle of radius 5."""
    angle = torch.randint(8, (n,)) * math.pi / 4
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2)


def two_moons(n):
    """Two half circles of radius 3, one in the other."""
    angle, upper = math.pi * torch.rand(n), torch.randint(2, (n,))
    moon = torch.stack([angle.cos() + upper - 0.5, (1 - 2 * upper) * angle.sin() + 0.5 * upper - 0.25], 1)
    return 3 * moon + 0.15 * torch.randn(n, 2)


def at_random(x0, x1):
    """Both batches as they came."""
    return x0, x1


def by_transport(x0, x1):
    """As many pairs, drawn from the plan between the two batches."""
    plan = uk.sinkhorn_loss(x0, x1, metric="sqeuclidean", reg=0.02, reg_scale="mean", return_result=True)
    i, j = plan.sample(len(x0))
    return x0[i], x1[j]


def train(pairing):
    """A velocity field, and its mean loss over the last tenth of the steps."""
    torch.manual_seed(arguments.seed)
    field = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )  # fmt: skip
    optimizer, losses = torch.optim.Adam(field.parameters(), lr=2e-3), []
    for _ in range(arguments.steps):
        x0, x1 = pairing(eight_gaussians(arguments.batch), two_moons(arguments.batch))
        t = torch.rand(len(x0), 1)
        loss = (field(torch.cat([x0 + t * (x1 - x0), t], 1)) - (x1 - x0)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return field, sum(losses[-(len(losses) // 10 + 1) :]) / (len(losses) // 10 + 1)


@torch.no_grad()
def follow(field, x, steps):
    """Euler's method: where x goes, and its velocity at each step."""
    velocities = []
    for k in range(steps):
        velocities.append(field(torch.cat([x, torch.full((len(x), 1), k / steps)], 1)))
        x = x + velocities[-1] / steps
    return x, torch.stack(velocities)


for name, pairing in {"at random": at_random, "by transport": by_transport}.items():
    field, loss = train(pairing)
    torch.manual_seed(arguments.seed + 1)
    start, wanted = eight_gaussians(1000), two_moons(1000)
    end, velocities = follow(field, start, 100)
    straight = end - start
    bend = (velocities - straight).square().sum(2).mean() / straight.square().sum(1).mean()
    gap = {
        steps: uk.sinkhorn_loss(
            follow(field, start, steps)[0], wanted, metric="sqeuclidean", reg=0.1, objective="divergence"
        ).item()
        for steps in (3, 100)
    }
    print(
        f"pairs {name}: loss {loss:.2f}, bend of the paths {100 * bend:.1f} %, "
        f"divergence from the moons after 3 steps {gap[3]:.3f}, after 100 {gap[100]:.3f}"
    )
