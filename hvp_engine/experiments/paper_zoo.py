"""The zoo at the papers' sizes; its data are the user's, and read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.data import dialogue, idx, picture_files, text
from hvp_engine.experiments.data.masking import masked
from hvp_engine.experiments.entry import Blocks, Entry, Family, Recipe, seeded, weights
from hvp_engine.experiments.models import huggingface
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.experiments.models.paper_names import paper_names
from hvp_engine.experiments.models.patches import Mixer, PatchConfig
from hvp_engine.experiments.models.vision import MLP, VGG
from hvp_engine.experiments.optimizers import cosine
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.small_zoo import characters, order_of, vocabulary
from hvp_engine.experiments.tasks import Amounts, on_images, on_text

GPT2 = GPTConfig(50_304, 1024, 12, 12, 768, damp_wo=False)
WORDPIECES = 30_000
_GPT2_MICROBATCHES = 40
_BERT_BATCH = 32
_BERT_CONTEXT = 64
_VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MIXER_S16 = PatchConfig(224, 16, 3, 1000, width=512, layers=8)
_IMAGES, _IMAGE_BATCH = 1024, 64  # where a Hessian is taken, and how many of them at once
_IMAGENET_STEPS = 90 * (1_281_167 // 256)
_GRID = {"sgd": (1.0, 0.3, 0.1, 0.03, 0.01), "adam": (3e-3, 1e-3, 6e-4, 3e-4, 1e-4)}
_DECAYED: Mapping[str, Mapping[str, Any]] = {"sgd": {"weight_decay": 1e-4}, "adam": {"weight_decay": 1e-4}}


def paper_zoo(setting: Setting) -> dict[str, Entry]:
    """Make the entries of the papers' sizes."""
    vision: list[tuple[str, Family, Callable[[], nn.Module], Callable[[nn.Module], Blocks]]] = [
        ("vgg", "cnn", partial(VGG, _VGG_16, 4096, 1000, channels=3, side=224, head_std=0.01), weights),
        ("resnet", "cnn", huggingface.resnet_18, weights),
        ("vit", "transformer", huggingface.vit_base, paper_names),
        ("mixer", "mlp", partial(Mixer, _MIXER_S16, 256), weights),
    ]
    entries = [_mlp(setting), *(_on_imagenet(setting, *kind) for kind in vision)]
    entries += [_bert(setting), _gpt(setting), _gpt2(setting)]
    return {entry.name: entry for entry in entries}


def _mlp(setting: Setting) -> Entry:
    amounts = Amounts(128, 128, 128, 1024)
    return Entry(
        "mlp",
        "mlp",
        seeded(partial(MLP, (784, 64, 64, 64, 10))),
        losses.classification,
        lambda seed: on_images(idx.mnist(setting.data), amounts, seed),
        Recipe(setting.option("steps", 3 * (60_000 // 128)), amounts.training),
        _GRID,
        sketch=partial(_pictures, 128, 1, 28),
    )


def _on_imagenet(
    setting: Setting,
    name: str,
    family: Family,
    build: Callable[[], nn.Module],
    choose: Callable[[nn.Module], Blocks],
) -> Entry:
    amounts = Amounts(_IMAGES, _IMAGE_BATCH, 256, _IMAGES)
    return Entry(
        name,
        family,
        seeded(build),
        losses.classification,
        lambda seed: on_images(picture_files.imagenet(setting.data), amounts, seed),
        Recipe(setting.option("steps", _IMAGENET_STEPS), amounts.training, options=_DECAYED),
        _GRID,
        choose,
        sketch=partial(_pictures, _IMAGES, 3, 224),
    )


def _gpt(setting: Setting) -> Entry:
    """Make nanoGPT's character model, trained as its authors' configuration has it."""
    sequences, micro = setting.option("tokens", 163_840) // 256, 64
    amounts = Amounts(sequences, micro, 64, 128, 256, order_of(setting))

    def build() -> nn.Module:
        return GPT(GPTConfig(vocabulary(setting), 256, 6, 6, 384, damp_wo=False))

    return Entry(
        "gpt",
        "transformer",
        seeded(build),
        losses.causal_lm,
        lambda seed: on_text(characters(setting), amounts, seed),
        Recipe(
            setting.option("steps", 5000),
            amounts.training,
            clip=1.0,
            schedule=partial(cosine, warm_up=0.02, last=0.1),
            options={"adam": {"betas": (0.9, 0.99), "weight_decay": 0.1}, "sgd": {"weight_decay": 0.1}},
        ),
        _GRID,
        paper_names,
        sketch=partial(_tokens, sequences, micro, 256),
    )


def _gpt2(setting: Setting) -> Entry:
    sequences, micro = setting.option("tokens", 245_760) // GPT2.context, 8
    amounts = Amounts(sequences, micro, 12, 64, GPT2.context, order_of(setting))
    return Entry(
        "gpt2",
        "transformer",
        seeded(partial(GPT, GPT2)),
        losses.causal_lm,
        lambda seed: on_text(text.openwebtext(setting.data), amounts, seed),
        Recipe(
            setting.option("steps", 100_000),
            _GPT2_MICROBATCHES * amounts.training,
            clip=1.0,
            microbatches=_GPT2_MICROBATCHES,
            schedule=partial(cosine, warm_up=0.02, last=0.05),
            options={"adam": {"betas": (0.9, 0.95), "weight_decay": 0.1}, "sgd": {"weight_decay": 0.1}},
        ),
        _GRID,
        paper_names,
        sketch=partial(_tokens, sequences, micro, GPT2.context),
    )


def _bert(setting: Setting) -> Entry:
    sequences, micro = setting.option("tokens", 327_680) // _BERT_CONTEXT, 256
    build = partial(
        huggingface.bert, WORDPIECES, _BERT_CONTEXT, width=768, layers=2, heads=12, next_sentence=True
    )  # fmt: skip
    return Entry(
        "bert",
        "transformer",
        seeded(build),
        pretraining,
        partial(_pairs, setting, sequences, micro),
        Recipe(setting.option("steps", 20_000), _BERT_BATCH, clip=1.0),
        _GRID,
        paper_names,
        sketch=partial(_masked_pairs, sequences, micro),
    )


def pretraining(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute BERT's loss: the mean over masked tokens plus the mean over pairs of sentences."""
    loss: Tensor = model(**batch).loss
    return loss


def _pairs(setting: Setting, sequences: int, micro: int, seed: int) -> Batches:
    """Make batches of pairs of sentences with masked tokens, padded to 64, from dialogues."""
    conversations = dialogue.conversations(setting.data)
    tokenizer = dialogue.wordpiece([line for part in conversations.train for line in part], WORDPIECES)

    def batches(part: Sequence[Sequence[str]], size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        pairs = dialogue.sentence_pairs(part, seed)
        while True:
            chosen = [next(pairs) for _ in range(size)]
            encoded = tokenizer(
                [pair.first for pair in chosen],
                [pair.second for pair in chosen],
                truncation=True,
                padding="max_length",
                max_length=_BERT_CONTEXT,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special = encoded.pop("special_tokens_mask").bool()
            inputs, targets = masked(
                encoded["input_ids"], 0.15, WORDPIECES, tokenizer.mask_token_id, generator, special
            )
            follows = torch.tensor([int(not pair.follows) for pair in chosen])
            yield {**encoded, "input_ids": inputs, "labels": targets, "next_sentence_label": follows}

    fixed = batches(conversations.train, micro, seed + (1 << 20))
    held_out = batches(conversations.held_out, micro, seed + (1 << 20))
    return Batches(
        [next(fixed) for _ in range(sequences // micro)],
        partial(batches, conversations.train, _BERT_BATCH, seed),
        [next(held_out) for _ in range(4)],
        conversations.source.described(),
    )


def _pictures(count: int, channels: int, side: int) -> tuple[Any, int]:
    """Make the shapes of one micro-batch of images and classes; say how many there are."""
    size = min(count, _IMAGE_BATCH)
    labels = torch.empty(size, dtype=torch.int64, device="meta")
    return (torch.empty(size, channels, side, side, device="meta"), labels), count // size


def _tokens(sequences: int, micro: int, length: int) -> tuple[Any, int]:
    return torch.empty(micro, length, dtype=torch.int64, device="meta"), sequences // micro


def _masked_pairs(sequences: int, micro: int) -> tuple[Any, int]:
    ids = {  # without the attention mask, whose values transformers looks at
        name: torch.empty(micro, _BERT_CONTEXT, dtype=torch.int64, device="meta")
        for name in ("input_ids", "token_type_ids", "labels")
    }
    labels = torch.empty(micro, dtype=torch.int64, device="meta")
    return {**ids, "next_sentence_label": labels}, sequences // micro
