"""Every code block of the README does what it says: it is run here, or named below with the reason why not."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hvp_engine import cli, losses

README = Path(__file__).parents[1] / "README.md"
NOT_RUN = {
    "pip install . && hvp-engine demo": "takes three minutes of training and spectra: run by hand",
    "pip install '.[test]' && pytest": "would run this test again; .ci/run types it",
    "pip install '.[test]' && pytest benchmarks --size medium --write": "takes long; nox -s benchmarks runs tiny ones",
}


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its language, its text and the line of the README on which the text begins."""

    language: str
    text: str
    line: int

    def file_name(self) -> str | None:
        """The name in a first line like ``# job.py``: that of the file to be written."""
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match else None

    def commands(self) -> list[str]:
        """The lines of a shell block, without comments."""
        return [shlex.join(words) for line in self.text.splitlines() if (words := shlex.split(line, comments=True))]


def code_blocks() -> list[CodeBlock]:
    text = README.read_text()
    return [
        CodeBlock(match[1], match[2], text[: match.start(2)].count("\n") + 1)
        for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    ]


def blocks_in(language: str) -> list[CodeBlock]:
    return [block for block in code_blocks() if block.language == language]


def requoted(command: str) -> str:
    """A command with its words quoted in one way."""
    return shlex.join(shlex.split(command))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these run fastest so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert {block.language for block in code_blocks()} == {"python", "bash"}, "A block of another language is not run."
    commands = [command for block in blocks_in("bash") for command in block.commands()]
    named = [requoted(command) for command in NOT_RUN]
    run = [command for command in commands if command.startswith("hvp-engine ")]
    assert sorted(run + named) == sorted(commands)
    fences = sum(line.lstrip(" >").startswith(("```", "~~~")) for line in README.read_text().splitlines())
    assert fences == 2 * len(code_blocks())


def test_python_blocks_run_in_their_order(prelude: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks_in("python"):
        code = compile("\n" * (block.line - 1) + block.text, str(README), "exec")
        exec(code, prelude)
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
    for block in blocks_in("python"):
        if name := block.file_name():
            (tmp_path / name).write_text(block.text)
    monkeypatch.setitem(sys.modules, "job", None)  # the file's module is forgotten afterwards
    for block in blocks_in("bash"):
        for command in block.commands():
            if command.startswith("hvp-engine "):
                monkeypatch.setattr(sys, "argv", shlex.split(command))
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                assert stop.value.code == 0, command
    assert {path.name for path in (tmp_path / "mlp-run").iterdir()} == {
        "manifest.json",
        "spectra.safetensors",
        "spectra.pdf",
        "js_distance.pdf",
    }
    shown = capsys.readouterr().out
    assert "0.weight" in shown and "a100-80gb" in shown
