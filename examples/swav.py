"""A SwAV step: two views of each sample predict each other's balanced assignment to prototypes. Labels are never seen.

python examples/swav.py
"""

import torch
import torch.nn.functional as F

import ucmkd_fast as uk

torch.manual_seed(0)
classes = torch.arange(10).repeat(200)  # ten clusters of two hundred samples, on which noise lies
samples = torch.randn(10, 32)[classes]
encoder = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
prototypes = torch.nn.Linear(16, 30, bias=False)
optimizer = torch.optim.Adam([*encoder.parameters(), *prototypes.parameters()], lr=2e-3)


def scores(view):
    """Cosines with the prototypes (n, K)."""
    return F.linear(F.normalize(encoder(view), dim=1), F.normalize(prototypes.weight, dim=1))


for _step in range(200):
    batch = samples[torch.randint(len(samples), (256,))]
    one, other = (scores(batch + 0.5 * torch.randn_like(batch)) for _ in range(2))
    # In a run on several processes: group=torch.distributed.group.WORLD balances over the batch of all.
    targets = [uk.assign(view, temperature=0.05, n_iter=3) for view in (other, one)]
    loss = sum(F.cross_entropy(view / 0.1, q) for view, q in zip((one, other), targets, strict=True)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    nearest = scores(samples + 0.5 * torch.randn_like(samples)).argmax(1)
of = torch.stack([classes[nearest == k].bincount(minlength=10) for k in range(30)])
print(f"loss {loss.item():.3f}, {int((of.sum(1) > 0).sum())} of 30 prototypes are the nearest of some sample")
print(
    f"{100 * of.amax(1).sum().item() / len(samples):.1f} % of samples share the class of most at their prototype"
)
