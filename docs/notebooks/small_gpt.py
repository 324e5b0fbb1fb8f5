# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A small GPT, block by block
#
# A GPT of one layer is trained on sequences with structure, and the spectra of its blocks are computed before and
# after. It takes seconds on one core; the same calls serve larger models.

# %%
import matplotlib.pyplot as plt
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hvp_engine as he

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=24,
    n_positions=16,
    n_embd=16,
    n_layer=1,
    n_head=2,
    tie_word_embeddings=False,
    eos_token_id=0,
    bos_token_id=0,
)
model = GPT2LMHeadModel(config).eval()


def sequences(count: int) -> torch.Tensor:
    """Give arithmetic progressions modulo 23 with a random start, and a step of 1, 2 or 3."""
    starts, steps = torch.randint(0, 23, (count, 1)), torch.randint(1, 4, (count, 1))
    return (starts + steps * torch.arange(16)) % 23


batches = [sequences(16) for _ in range(2)]
loss = he.losses.causal_lm

# %% [markdown]
# ## At initialisation
#
# Blocks by role. The queries, keys and values of GPT-2 share one tensor; `he.blocks.projections` takes them apart.

# %%
blocks = [
    *he.blocks.projections(model, "*.c_attn.weight"),
    he.Block("attention output", [("transformer.h.0.attn.c_proj.weight", None)]),
    he.Block("mlp up", [("transformer.h.0.mlp.c_fc.weight", None)]),
    he.Block("mlp down", [("transformer.h.0.mlp.c_proj.weight", None)]),
    he.Block("embedding", [("transformer.wte.weight", None)]),
    he.Block("head", [("lm_head.weight", None)]),
]
before = he.slq(model, loss, blocks, data=batches, steps=20, tolerance=0.1)
print(before.summary())

# %% [markdown]
# ## After some training

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(200):
    total, weight = loss(model, sequences(16))
    optimizer.zero_grad()
    (total / weight).backward()
    optimizer.step()
print(f"loss {total.item() / weight.item():.3f}")

after = he.slq(model, loss, blocks, data=batches, steps=20, tolerance=0.1)
print(after.summary())

# %% [markdown]
# ## What changed
#
# The largest eigenvalue of every block, with its bound, and how far the blocks are apart (JS0, in [0, 1]).

# %%
for name in before:
    first, last = before[name].largest(), after[name].largest()
    print(f"{name}: {first.value:.3g} to {first.high:.3g} before, {last.value:.3g} to {last.high:.3g} after")
for when, spectra in (("before", before), ("after", after)):
    js0 = spectra.js0_estimate()
    print(f"JS0 {when}: {js0.value:.2f}, in {js0.low:.2f} to {js0.high:.2f}")

# %% [markdown]
# ## The figures
#
# The densities of the blocks after training with their 95 % bands, on a logarithmic axis. `after.plot("spectra.png")`
# and `after.plot_js("js.png")` write figures of all blocks and of their distances without further ado.

# %%
figure, panels = plt.subplots(2, 4, figsize=(11, 4.5), layout="constrained")
for axes, (name, spectrum) in zip(panels.flat, after.items(), strict=True):
    band = spectrum.density_band()
    axes.semilogy(band.points, band.value)
    axes.fill_between(band.points, band.low, band.high, alpha=0.3)
    axes.set_ylim(band.value.max() * 1e-5, band.value.max() * 2)
    axes.set_title(name.removeprefix("transformer.h.0."))

# %%
js = after.js_estimate()
figure, axes = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
axes.set_yticks(range(len(after)), [name.removeprefix("transformer.h.0.") for name in after])
bar = figure.colorbar(axes.imshow(js.value, vmin=0, vmax=1), label="Jensen-Shannon divergence")
