"""Ready losses: what they count, and the layouts that they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BatchEncoding,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hvp_engine import losses
from hvp_engine.errors import ObjectiveError

WORDS = 11
TOKENS = torch.randint(1, WORDS, (4, 6), generator=torch.Generator().manual_seed(0))
RIGHT = (torch.arange(6) < torch.tensor([6, 2, 4, 3])[:, None]).long()  # padding on the right


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


class Given(nn.Module):
    """Returns its parameter, whatever the input is."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.logits


def mean(value: tuple[Tensor, Tensor]) -> Tensor:
    total, weight = value
    return total / weight


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=4, n_layer=1, n_head=1)).eval()


def t5() -> nn.Module:
    config = T5Config(vocab_size=WORDS, d_model=4, d_kv=4, d_ff=6, num_layers=1, num_heads=1, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def bart() -> nn.Module:
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 6))}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = BartConfig(vocab_size=WORDS, d_model=4, max_position_embeddings=12, **sizes, **heads)
    config.decoder_start_token_id, config.pad_token_id = 2, 1
    return BartForConditionalGeneration(config).eval()


def test_no_token_is_predicted_from_padding() -> None:
    model = gpt2()
    for mask in (RIGHT, RIGHT.flip(1)):
        inputs = {"input_ids": TOKENS, "attention_mask": mask}
        logits = model(**inputs).logits
        pairs = [(i, j) for i in range(4) for j in range(1, 6) if mask[i, j] and mask[i, j - 1]]
        wanted = torch.stack([F.cross_entropy(logits[i, j - 1], TOKENS[i, j]) for i, j in pairs])
        labelled = {**inputs, "labels": TOKENS.masked_fill(mask == 0, losses.IGNORE)}
        for batch in (inputs, labelled, BatchEncoding(labelled)):
            total, weight = losses.causal_lm(model, batch)
            assert int(weight) == len(pairs)
            torch.testing.assert_close(total, wanted.sum())


def test_a_mask_that_does_not_tell_the_padding_asks_for_labels() -> None:
    mask = torch.ones(4, 1, 6, 6)
    with pytest.raises(ObjectiveError, match="put 'labels' into the batch"):
        losses.causal_lm(Given(4, 6, WORDS), {"input_ids": TOKENS, "attention_mask": mask})
    labels = {"input_ids": TOKENS, "attention_mask": mask, "labels": TOKENS}
    assert int(losses.causal_lm(Given(4, 6, WORDS), labels)[1]) == 20
    with pytest.raises(ObjectiveError, match="'input_ids' or 'labels'"):
        losses.causal_lm(Given(4, 6, WORDS), {"tokens": TOKENS})


@pytest.mark.parametrize("make", [t5, bart])
def test_encoder_decoder_models_are_asked_for_their_decoder_inputs(make: Any) -> None:
    model = make()
    labels = TOKENS[:, :5].masked_fill(RIGHT[:, :5] == 0, losses.IGNORE)
    batch = {"input_ids": TOKENS, "attention_mask": RIGHT, "labels": labels}
    wanted = model(**batch).loss
    total, weight = losses.seq2seq_lm(model, batch)
    assert int(weight) == int((labels != losses.IGNORE).sum())
    torch.testing.assert_close(total / weight, wanted)

    class Wrapped(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return model(**inputs)

    torch.testing.assert_close(mean(losses.seq2seq_lm(Wrapped(), batch)), wanted)
    shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
    torch.testing.assert_close(mean(losses.seq2seq_lm(model, {**batch, "decoder_input_ids": shifted})), wanted)
    with pytest.raises(ObjectiveError, match="needs a 'labels' entry"):
        losses.seq2seq_lm(model, {"input_ids": TOKENS})
    with pytest.raises(ObjectiveError, match="takes mappings"):
        losses.seq2seq_lm(model, (TOKENS, labels))


def test_pixels_are_classified_as_pytorch_does() -> None:
    for model, targets in (
        (Given(2, 4, 5, 6), torch.arange(60).reshape(2, 5, 6) % 4),
        (Given(2, 4, 7), torch.arange(14).reshape(2, 7) % 4),
        (Given(2, 4, 3, 5, 6), torch.arange(180).reshape(2, 3, 5, 6) % 4),
    ):
        targets[0, 0] = losses.IGNORE
        total, weight = losses.classification(model, (None, targets))
        assert int(weight) == int((targets != losses.IGNORE).sum())
        torch.testing.assert_close(total / weight, F.cross_entropy(model.logits, targets))


def test_classes_that_are_last_are_recognised_where_nothing_else_fits() -> None:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=6, num_labels=3
    )
    batch = {"input_ids": TOKENS, "labels": TOKENS % 3}
    model = BertForTokenClassification(config).eval()
    torch.testing.assert_close(mean(losses.classification(model, batch)), model(**batch).loss)


def test_a_layout_that_fits_in_two_ways_is_refused_and_both_ways_out_work() -> None:
    model, targets = Given(2, 4, 4, 4), torch.arange(32).reshape(2, 4, 4) % 4
    with pytest.raises(ObjectiveError, match="dimension 1 or last; use losses.masked_lm"):
        losses.classification(model, (None, targets))
    last = F.cross_entropy(model.logits.reshape(-1, 4), targets.reshape(-1))
    torch.testing.assert_close(mean(losses.masked_lm(model, (None, targets))), last)


def test_targets_of_one_class_per_row_come_in_many_forms() -> None:
    model, targets = Given(5, 3), torch.tensor([0, 2, 1, 1, 0])
    wanted = F.cross_entropy(model.logits, targets)
    for given in (
        targets,
        targets.int(),
        targets[:, None],
        targets.tolist(),
        targets.numpy(),
        F.one_hot(targets, 3) / 1,
    ):
        torch.testing.assert_close(mean(losses.classification(model, (None, given))), wanted)
    soft = torch.softmax(torch.randn(5, 3), 1)
    torch.testing.assert_close(mean(losses.classification(model, (None, soft))), F.cross_entropy(model.logits, soft))
    torch.testing.assert_close(
        mean(losses.classification(Given(3), (None, 1))), F.cross_entropy(Given(3).logits, targets[2])
    )


def test_targets_that_do_not_fit_are_refused() -> None:
    targets = torch.tensor([0, 2, 1, 1, 0])
    for model, given, match in (
        (Given(5, 3), F.one_hot(targets, 3), r"one-hot targets pass .argmax\(1\)"),
        (Given(5, 3), targets[:4], r"the logits are \(5, 3\), the targets \(4,\)"),
        (Given(5, 3), torch.rand(5), "class indices, or probabilities"),
        (Given(5, 1), torch.rand(5, 1), "one class, whose cross-entropy is zero"),
        (Given(5, 1), torch.zeros(5).long(), "one class, whose cross-entropy is zero"),
    ):
        with pytest.raises(ObjectiveError, match=match):
            losses.classification(model, (None, given))
    for given in (TOKENS[:, :5], TOKENS.float()):
        with pytest.raises(ObjectiveError, match="classes last"):
            losses.masked_lm(Given(4, 6, WORDS), (None, given))
