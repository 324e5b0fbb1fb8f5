"""Every code block of the README does what it says: it is run here, or named below with the reason why not."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import COMMAND, code_blocks, run_command, write_files
from transformers import GPT2Config, GPT2LMHeadModel

from hvp_engine import losses

README = Path(__file__).parents[1] / "README.md"
NOT_RUN = {
    "pip install . && hvp-engine demo": "takes three minutes of training and spectra: run by hand",
    "pip install '.[test]' && pytest": "would run this test again; .ci/run types it",
    "pip install '.[test]' && pytest benchmarks --size medium --write": "takes long; nox -s benchmarks runs tiny ones",
}
pytestmark = pytest.mark.usefixtures("one_thread")


def requoted(command: str) -> str:
    """A command with its words quoted in one way."""
    return shlex.join(shlex.split(command))


@pytest.fixture
def prelude() -> dict[str, Any]:
    """What the README's blocks take as given: a language model of the user's, its loss and its data."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False, initializer_range=0.2
    )
    batches = [torch.randint(0, 17, (2, 8)) for _ in range(2)]
    model = GPT2LMHeadModel(config).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    model(batches[0], labels=batches[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loss": losses.causal_lm,
        "batches": batches,
        "tokens": batches[0],
    }


def test_every_block_is_run_or_named() -> None:
    blocks = code_blocks(README)
    assert {block.language for block in blocks} == {"python", "bash"}, "A block of another language is not run."
    commands = [command for block in code_blocks(README, "bash") for command in block.commands()]
    named = [requoted(command) for command in NOT_RUN]
    run = [command for command in commands if command.startswith(COMMAND)]
    assert sorted(run + named) == sorted(commands)
    fences = sum(line.lstrip(" >").startswith(("```", "~~~")) for line in README.read_text().splitlines())
    assert fences == 2 * len(blocks)


def test_python_blocks_run_in_their_order(prelude: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for block in code_blocks(README, "python"):
        block.execute(prelude)
    assert set(prelude["spectra"]) == set(prelude["operator"].blocks)
    assert prelude["report"].ok
    block = "lm_head.weight"
    assert prelude["products"][block].shape == prelude["vectors"][block].shape
    assert prelude["loss"].requires_grad
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in ("spectra.png", "js.png"))
    assert block in capsys.readouterr().out


def test_shell_blocks_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(code_blocks(README, "python"), tmp_path, monkeypatch)
    for block in code_blocks(README, "bash"):
        for command in block.commands():
            if command.startswith(COMMAND):
                run_command(command, monkeypatch)
    assert {path.name for path in (tmp_path / "mlp-run").iterdir()} == {
        "manifest.json",
        "spectra.safetensors",
        "spectra.pdf",
        "js_distance.pdf",
    }
    shown = capsys.readouterr().out
    assert "0.weight" in shown and "a100-80gb" in shown
