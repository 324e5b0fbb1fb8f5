import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test draws the same numbers, whichever tests run before it."""
    torch.manual_seed(0)
