# %% [markdown]
# # A small GPT, block by block

# %%
import hvp_engine as he

print(he.__version__)
