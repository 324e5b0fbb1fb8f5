import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import CASES, dense_hessian
from torch import nn

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.operators.head import store as head
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.results.distances import wasserstein
from hvp_engine.scheduling import policy

TOKENS = [torch.randint(0, 40, (n, 6), generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
BLOCKS = {"wte": ["wte.weight"], "wq": ["layers.0.attn.wq.weight"], "fc": ["layers.0.c_fc.weight"]}


def tied_gpt():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=40, context=6, layers=1, heads=2, width=8)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0)
    return model


def operator(precision="fp32", **options):
    return HessianOperator(tied_gpt(), he.losses.causal_lm, BLOCKS, data=TOKENS, precision=precision, **options)


def vectors(op):
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(2, numel, generator=generator, dtype=op.dtype) for name, numel in op.numel.items()}


def relative(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture
def forming(monkeypatch):
    """Make forming pay at the sizes of a test: a bottomless number of products is promised."""
    monkeypatch.setattr(policy, "BALANCE", {"memory": 0.0, "disk": 0.0})
    return dict.fromkeys(BLOCKS, 10**9)


def test_the_head_of_a_tied_model_is_found_by_running_it():
    assert operator().head.name == "wte.weight"


def test_a_classifier_with_more_classes_than_inputs_has_a_head():
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 4), nn.Linear(4, 9))
    data = [(torch.randn(5, 3), torch.randint(0, 9, (5,)))]
    op = HessianOperator(model, he.losses.classification, data=data)
    assert op.head.name == "3.weight"  # not the first layer, wide too, whose output goes into tanh


@pytest.mark.parametrize("loss", ["scaled", "squared", "two heads"])
def test_other_losses_have_no_head(loss):
    model = nn.ModuleDict({"a": nn.Linear(3, 9), "b": nn.Linear(3, 9)})
    data = [(torch.randn(5, 3), torch.randint(0, 9, (5,)))]
    losses = {
        "scaled": lambda m, b: F.cross_entropy(3 * m["a"](b[0]), b[1]),
        "squared": lambda m, b: m["a"](b[0]).square().mean(),
        "two heads": lambda m, b: F.cross_entropy(m["a"](b[0]), b[1]) + F.cross_entropy(m["b"](b[0]), b[1]),
    }
    assert HessianOperator(model, losses[loss], data=data).head is None


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 2e-2)])
def test_products_with_head_curvature_equal_those_without(precision, tolerance, forming):
    plain, quick = operator(precision), operator(precision)
    quick.form_head_curvature(forming, progress=False)
    assert "in memory, relative error" in quick.head_curvature
    given = vectors(plain)
    wanted, found = plain.matmat(given), quick.matmat(given)
    for name in BLOCKS:
        assert relative(found[name], wanted[name]) <= tolerance, name
    assert (
        torch.equal(found["wte"], wanted["wte"]) or precision != "fp64"
    )  # the general path serves the head's own block


def test_the_matrices_are_used_by_blocks_below_the_head_alone(forming, monkeypatch):
    op = operator()
    op.form_head_curvature(forming, progress=False)
    used = []
    apply = head.HeadCurvature.matvec
    monkeypatch.setattr(head.HeadCurvature, "matvec", lambda self, *a: used.append(1) or apply(self, *a))
    given = vectors(op)
    op.matmat({"wte": given["wte"]})
    assert not used
    op.matmat({"wq": given["wq"]})
    assert used


@pytest.mark.parametrize("microbatch", [None, 1, 2])
def test_curvature_on_disk_gives_the_same_products(forming, monkeypatch, microbatch):
    plain = operator()
    monkeypatch.setattr(policy, "MEMORY_SHARE", 0.0)
    quick = operator(microbatch=microbatch)
    quick.form_head_curvature(forming, progress=False)
    assert "on disk" in quick.head_curvature
    given = vectors(plain)
    wanted, found = plain.matmat(given), quick.matmat(given)
    for name in BLOCKS:
        assert relative(found[name], wanted[name]) <= 1e-5


def test_smaller_microbatches_in_mid_job_form_their_own_matrices(forming):
    op = operator()
    given = vectors(op)
    wanted = op.matmat(given)
    op.form_head_curvature(forming, progress=False)
    op.scheduler.release()
    op.scheduler.plan.microbatch = 1
    found = op.matmat(given)
    for name in BLOCKS:
        assert relative(found[name], wanted[name]) <= 1e-5


def test_changed_parameters_get_new_matrices(forming):
    op = operator()
    op.form_head_curvature(forming, progress=False)
    given = vectors(op)
    op.matmat(given)
    with torch.no_grad():
        for parameter in op.objective.model.parameters():
            parameter.mul_(1.5)
    found = op.matmat(given)
    fresh = HessianOperator(op.objective.model, he.losses.causal_lm, BLOCKS, data=TOKENS).matmat(given)
    for name in BLOCKS:
        assert relative(found[name], fresh[name]) <= 1e-5


def test_matrices_that_turn_out_wrong_are_not_used(forming, monkeypatch):
    plain = operator()
    monkeypatch.setattr(head, "_error", lambda *a: (0.5, 0.0))
    op = operator()
    op.form_head_curvature(forming, progress=False)
    assert op.head_curvature == "not used: its relative error is 5.0e-01"
    given = vectors(op)
    wanted, found = plain.matmat(given), op.matmat(given)
    assert all(torch.equal(found[name], wanted[name]) for name in BLOCKS)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_products_with_dropped_classes_are_off_by_no_more_than_what_was_dropped(precision, forming):
    exact, quick = operator("fp64"), operator(precision)
    exact.form_head_curvature(forming, progress=False)
    quick.form_head_curvature(forming, progress=False, tolerance=0.1)
    words = quick.head_curvature
    share, bound = re.search(r"([\d.]+)% of the classes kept, up to (\S+) of the largest trace lost$", words).groups()
    assert 0 < float(share) < 100
    assert 0 < float(bound) <= 0.1
    given = vectors(exact)
    wanted, found = exact.matmat(given), quick.matmat(given)
    rounding = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}[precision]
    assert relative(found["wte"], wanted["wte"]) <= rounding
    for name in ("wq", "fc"):
        error = relative(found[name], wanted[name])
        assert error <= 0.1
        assert error > 1e-6 or precision == "bf16"


def test_an_error_beyond_what_was_dropped_is_refused(forming, monkeypatch):
    form = head.form_head_curvature

    def claiming(share):
        def formed(*args, **options):
            found = form(*args, **options)
            return replace(found, dropped=replace(found.dropped, bound=share * found.dropped.bound))

        return formed

    for share, used in ((1.0, True), (1e-3, False)):
        monkeypatch.setattr(head, "form_head_curvature", claiming(share))
        op = operator()
        op.form_head_curvature(forming, progress=False, tolerance=0.1)
        assert op.head_curvature.startswith("float32" if used else "not used"), share


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_tokens_get_no_matrices_unless_their_losses_are_wanted(reduction, monkeypatch, forming):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 9))
    target = torch.tensor([3, -100, 8, -100, -100, 0])
    data = [(torch.randn(6, 3), target)]

    def loss(model, batch):
        total = F.cross_entropy(model(batch[0]), batch[1], reduction=reduction)
        return total.sum(), 1.0

    formed = []
    form = head.form_head_curvature
    monkeypatch.setattr(head, "form_head_curvature", lambda h, *a, **k: formed.append(len(h)) or form(h, *a, **k))
    plain, quick = (
        HessianOperator(model, loss, {"first": ["0.weight"]}, data=data, precision="fp64") for _ in range(2)
    )
    quick.form_head_curvature({"first": 10**9}, progress=False)
    v = torch.randn(3, 12, dtype=torch.double)
    assert relative(quick.matmat({"first": v})["first"], plain.matmat({"first": v})["first"]) <= 1e-12
    assert formed == [6 if reduction == "none" else 3]


def test_few_products_do_not_pay_for_forming():
    op = operator()
    op.form_head_curvature(dict.fromkeys(BLOCKS, 1), progress=False)
    assert op.head_curvature is None
    op.form_head_curvature({"wte": 10**9}, progress=False)  # the head's own block does not use it
    assert op.head_curvature is None


def test_slq_says_what_it_did_and_gives_the_same_spectrum(monkeypatch):
    monkeypatch.setattr(policy, "head_cost", lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30))
    runs = [
        he.slq(tied_gpt(), he.losses.causal_lm, BLOCKS, data=TOKENS, steps=12, probes=6, head_curvature=use)
        for use in (False, True)
    ]
    assert runs[0].manifest["plan"]["head_curvature"] is None
    assert "float32" in runs[1].manifest["plan"]["head_curvature"]
    for name in BLOCKS:
        assert wasserstein([run[name] for run in runs])[0, 1] <= 1e-5 * runs[0][name].extremes()[1]


def test_slq_says_what_it_dropped(monkeypatch):
    monkeypatch.setattr(policy, "head_cost", lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30))
    run = he.slq(tied_gpt(), he.losses.causal_lm, BLOCKS, data=TOKENS, steps=2, probes=1, head_curvature_tolerance=0.1)
    assert "of the classes kept, up to " in run.manifest["plan"]["head_curvature"]
    assert run.manifest["config"]["head_curvature_tolerance"] == 0.1


def test_a_tolerance_that_is_no_share_is_refused_at_once():
    for tolerance in (-0.1, 1.0, float("nan")):
        with pytest.raises(he.errors.ConfigurationError, match="pass 0 to keep all classes"):
            he.slq(tied_gpt(), he.losses.causal_lm, BLOCKS, data=TOKENS, head_curvature_tolerance=tolerance)
        with pytest.raises(he.errors.ConfigurationError, match="pass 0 to keep all classes"):
            operator().form_head_curvature({}, tolerance=tolerance)


def test_the_lazy_head_agrees_with_the_dense_hessian():
    case = CASES["gpt"]()
    dense = dense_hessian(case)
    op = HessianOperator(case.model, case.loss, data=case.data, precision="fp64")
    assert op.head is not None
    op.form_head_curvature({"full": 10**9}, progress=False)
    v = torch.randn(1, dense.shape[0], dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert relative(op.matmat({"full": v})["full"][0], dense @ v[0]) <= 1e-12
