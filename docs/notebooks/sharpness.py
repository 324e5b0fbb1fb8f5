# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Sharpness during training
#
# The largest eigenvalue of the Hessian while gradient descent runs with a fixed step. It rises until it is near 2 over
# the learning rate, and stays about there: the edge of stability (Cohen et al., ICLR 2021, arXiv 2103.00065).
# `he.eigsh` measures it at a few steps, on the training data, and leaves the model, its gradients and the random state
# as they were.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import hvp_engine as he

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
inputs = torch.randn(64, 8)
data = [(inputs, torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3])]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


# %% [markdown]
# ## Full-batch gradient descent

# %%
rate = 0.15
optimizer = torch.optim.SGD(model.parameters(), lr=rate)
history = []
for step in range(601):
    if step % 100 == 0:
        found = he.eigsh(model, loss, data=data, k=1, which="LA", tolerance=1e-2, check=step == 0, progress=False)
        history.append((step, loss(model, data[0]).item(), float(found["full"].values[-1])))
    optimizer.zero_grad()
    loss(model, data[0]).backward()
    optimizer.step()

steps, losses, sharpness = zip(*history, strict=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.semilogy(steps, losses, "o-")
left.set(xlabel="step", ylabel="loss")
right.plot(steps, sharpness, "o-", label="largest eigenvalue")
right.axhline(2 / rate, color="grey", linestyle="--", label="2 / learning rate")
right.set(xlabel="step")
right.legend()

for step, value, largest in history:
    print(f"step {step:4d}: loss {value:.4f}, largest eigenvalue {largest:.2f}, 2 / rate {2 / rate:.2f}")

# %% [markdown]
# ## What Adam sees
#
# An adaptive optimiser divides by its own diagonal, and what it sees is P^-1/2 H P^-1/2: `precondition=optimizer`. Its
# edge is at (2 + 2 beta1) / ((1 - beta1) x rate) (Cohen et al. 2022, arXiv 2207.14484).

# %%
adam = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(20):
    adam.zero_grad()
    loss(model, data[0]).backward()
    adam.step()
seen = he.eigsh(model, loss, data=data, k=1, which="LA", tolerance=1e-2, precondition=adam)["full"]
edge = (2 + 2 * 0.9) / ((1 - 0.9) * 1e-3)
print(f"largest eigenvalue as Adam sees it: {seen.values[-1]:.3g}, its edge {edge:.3g}")

# %% [markdown]
# ## By block, at the end

# %%
spectra = he.slq(model, loss, "module", data=data, steps=20, tolerance=0.1)
print(spectra.summary())
