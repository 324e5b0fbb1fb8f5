# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A Hugging Face model with error bars
#
# A BERT that classifies sequences, ragged batches with padding, and what each error bar covers. The model is built
# from a configuration, so that nothing is downloaded; `AutoModelForSequenceClassification.from_pretrained(...)` takes
# its place.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

import hvp_engine as he

torch.manual_seed(0)
config = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
    num_labels=3,
)
model = BertForSequenceClassification(config).eval()


def batch(size: int) -> dict[str, torch.Tensor]:
    """Give sequences of 6 to 12 tokens, padded, with the class of their first token."""
    tokens = torch.randint(1, 40, (size, 12))
    mask = (torch.arange(12) < torch.randint(6, 13, (size, 1))).long()
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": tokens[:, 0] % 3}


batches = [batch(24), batch(8)]
loss = he.losses.classification

# %% [markdown]
# ## Is it fit?

# %%
blocks = {"embeddings": ["*embeddings*"], "encoder": ["*.encoder.*"], "classifier": ["classifier.*"]}
report = he.doctor(model, loss, blocks, data=batches, seconds=3)
print(report)

# %% [markdown]
# ## Spectra, and what a bar covers
#
# Probes and Lanczos steps: over many seeds a 95 % bar holds the value for *these* data in about 95 % of runs.

# %%
spectra = he.slq(model, loss, blocks, data=batches, steps=20, tolerance=0.1, data_error=True)
for name, spectrum in spectra.items():
    trace, largest = spectrum.trace(), spectrum.largest()
    print(f"{name}: trace {trace.value:.3g} in {trace.low:.3g} to {trace.high:.3g} ({trace.reading})")
    print(f"  largest {largest.value:.3g} to {largest.high:.3g} ({largest.reading})")

# %% [markdown]
# The same trace by another method, from other random vectors:

# %%
other = he.trace(model, loss, blocks, data=batches, products=40, seed=1)
print(other.summary())

# %% [markdown]
# ## The choice of data
#
# None of these bars says what another 32 sentences would have given. `data_error=True` does.

# %%
print(spectra.data_error.summary())

# %% [markdown]
# ## The figure
#
# The distribution functions with their 95 % bands: the share of eigenvalues at or below each point.

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
for axes, (name, spectrum) in zip(panels, spectra.items(), strict=True):
    low, high = spectrum.extremes()
    band = spectrum.cdf(np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), 400))
    axes.plot(band.points, band.value)
    axes.fill_between(band.points, band.low, band.high, alpha=0.3)
    axes.set_title(name)
