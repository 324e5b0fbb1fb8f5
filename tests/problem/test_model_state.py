"""The caller's model after every call: bit for bit what it was, also after an interrupt; and products of that state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, ObjectiveError, SecondDerivativeError

torch.manual_seed(0)
DATA = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def product(model: nn.Module, loss: Any = mean_loss, **options: Any) -> Tensor:
    size = sum(p.numel() for p in model.parameters())
    found: Tensor = he.hvp(model, loss, {"full": torch.ones(1, size)}, data=DATA, **options)["full"]
    return found


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Busy(nn.Module):
    """A model that changes everything that a forward pass can change but its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls, self.log, self.cache = net(), 0, [], {}
        self.plain = torch.zeros(3)
        self.pair = [torch.zeros(2), torch.zeros(2)]
        self.seen: set[int] = set()
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("queue", torch.zeros(40_000))
        self.interrupt_at = -1

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        self.cache[self.calls] = x
        self.seen.add(self.calls)
        self.plain += 1
        self.pair[0].add_(1)
        self.counter += 1
        self.average.data.mul_(0.9).add_(x.detach().mean(0))
        self.queue = self.queue.roll(1) + 1
        self.newcomer = x
        self.register_buffer("latecomer", torch.ones(1))
        self.train()
        if self.log[-1] == self.interrupt_at:
            raise KeyboardInterrupt
        found: Tensor = self.net(x) * (1 + self.counter + self.plain.sum() + self.average.sum() + len(self.log))
        return found


def everything(model: Busy) -> dict[str, Any]:
    own = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    return {**copy.deepcopy(own), **copy.deepcopy(model.state_dict()), "modes": [m.training for m in model.modules()]}


def identities(model: Busy) -> dict[str, int]:
    return {
        name: id(value) for name, value in (*vars(model).items(), *model.named_buffers(), *model.named_parameters())
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "hvp": product,
    "hvp in float64": lambda m: product(m, precision="fp64"),
    "slq": lambda m: he.slq(m, mean_loss, "module", data=DATA, steps=2, probes=1, progress=False),
    "doctor": lambda m: he.doctor(m, mean_loss, data=DATA, seconds=1),
    "plan": lambda m: he.plan(m, mean_loss, data=DATA),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_busy_model_is_what_it_was_after_every_call(call: str) -> None:
    model = Busy().eval()
    before, objects = everything(model), identities(model)
    CALLS[call](model)
    assert same(everything(model), before)
    assert identities(model) == objects


def test_products_are_those_of_the_state_that_the_model_is_in() -> None:
    model = Busy().eval()
    model.counter += 2
    once = copy.deepcopy(model)
    with torch.no_grad():
        factor = float(once(DATA[0][0]).sum() / once.net(DATA[0][0]).sum())
    wanted = product(net(), lambda m, b: F.cross_entropy(m(b[0]) * factor, b[1]))
    torch.testing.assert_close(product(model), wanted)
    operator = he.HessianOperator(model, mean_loss, data=DATA)
    for _ in range(3):
        operator.release()
        torch.testing.assert_close(operator.matmat({"full": torch.ones(1, 43)})["full"], wanted)


@pytest.mark.parametrize("call", ["hvp", "slq", "doctor"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_leaves_the_model_as_it_was(call: str, at: int) -> None:
    model = Busy().eval()
    model.interrupt_at = at
    model.log.extend([0] * (at - 1))
    model.calls = at - 1
    before, objects = everything(model), identities(model)
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](model)
    assert same(everything(model), before)
    assert identities(model) == objects


def test_gradients_flags_and_hooks_are_what_they_were() -> None:
    model = net()
    mean_loss(model, DATA[0]).backward()
    model[2].bias.requires_grad_(False)
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}

    def meddling(m: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            mean_loss(m, batch).backward()
        m[0].register_forward_hook(lambda module, inputs, output: output * 2)
        m[2].bias.requires_grad_(True)
        return mean_loss(m, batch)

    operator = he.HessianOperator(model, meddling, ["0.weight"], data=DATA)
    operator.matmat({"0.weight": torch.ones(1, 20)})
    for name, parameter in model.named_parameters():
        gradient, content = gradients[name]
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, content)
    assert not model[0]._forward_hooks
    assert not model[2].bias.requires_grad


def test_spectral_norm_is_untouched_and_refused_in_train_mode_where_its_iteration_is_cut_out_of_the_graph() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SecondDerivativeError, match="cut out of the graph"):
        product(model)
    assert same(dict(model.state_dict()), dict(before))
    model.eval()  # a function of constant singular vectors
    assert torch.equal(product(model), product(model))
    assert same(dict(model.state_dict()), dict(before))


def test_a_buffer_of_two_modules_stays_one() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.a, self.b = net(), nn.Identity(), nn.Identity()
            shared = torch.zeros(())
            self.a.register_buffer("count", shared)
            self.b.register_buffer("count", shared)

        def forward(self, x: Tensor) -> Tensor:
            self.a.count += 1
            found: Tensor = self.net(x) * self.b.count
            return found

    model = Pair()
    torch.testing.assert_close(product(model), product(net()))
    assert model.a.count is model.b.count
    assert model.a.count == 0


def test_checkpointed_passes_evaluate_again_from_the_same_state() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.register_buffer("count", torch.zeros(()))

        def part(self, x: Tensor) -> Tensor:
            self.count += 1
            found: Tensor = self.net(x) * self.count
            return found

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.part, x, use_reentrant=False)

    model = Checkpointed()
    torch.testing.assert_close(product(model), product(net()))
    assert model.count == 0


def test_a_large_buffer_is_left_in_place_unless_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvp_engine.problem.model_state._LARGE", 1 << 10)
    seen: set[int] = set()

    class Large(nn.Module):
        def __init__(self, *, writes: bool) -> None:
            super().__init__()
            self.net, self.writes = net(), writes
            self.register_buffer("small", torch.ones(()))
            self.register_buffer("large", torch.ones(10_000))

        def forward(self, x: Tensor) -> Tensor:
            seen.add(self.large.data_ptr())
            if self.writes:
                self.large.add_(1)
            found: Tensor = self.net(x) * self.small * self.large[0]
            return found

    model = Large(writes=False)
    product(model)
    assert seen == {model.large.data_ptr()}
    with pytest.raises(ObjectiveError, match=r"writes to 'large' .*model\.eval\(\)"):
        product(Large(writes=True))


class Writing(nn.Module):
    """A model whose forward pass writes to a parameter."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = net(), how
        self.table = nn.Parameter(torch.randn(6, 4) * 3)

    @torch.no_grad()
    def write(self) -> None:
        weight = self.net[0].weight
        if self.how == "clamp_":
            weight.clamp_(-0.1, 0.1)
        elif self.how == ".data":
            weight.data.mul_(0.9)
        elif self.how == ".data =":
            weight.data = F.normalize(weight.data)
        elif self.how == "view":
            weight.view(-1)[:3] = 0
        elif self.how == "out=":
            torch.mul(weight, 0.9, out=weight)
        elif self.how == "foreach":
            torch._foreach_mul_([weight], 0.9)
        elif self.how == "numpy":
            weight.numpy()[:] *= 0.9

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        norm = 1.0 if self.how == "max_norm" else None
        found: Tensor = self.net(x + F.embedding(torch.arange(len(x)), self.table, max_norm=norm))
        return found


WRITES = ("clamp_", ".data", ".data =", "view", "out=", "foreach", "numpy", "max_norm")


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("how", WRITES)
def test_a_forward_pass_that_writes_to_parameters_is_refused_and_undone(how: str, precision: Any) -> None:
    model = Writing(how)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigurationError, match="changes the parameters it is evaluated at"):
        product(model, precision=precision)
    assert same(dict(model.state_dict()), dict(before))


def test_the_doctor_finds_writes_to_parameters() -> None:
    report = he.doctor(Writing("clamp_"), mean_loss, data=DATA, seconds=1)
    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["unsuitable-model"]


def test_embeddings_with_max_norm_are_refused_and_the_fix_works() -> None:
    torch.manual_seed(0)
    tokens = [(torch.randint(0, 6, (5, 2)), torch.randint(0, 3, (5,)))]
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    vectors = {"full": torch.ones(1, 51)}
    with pytest.raises(ConfigurationError, match=r"'0' has max_norm=1.*torch\.renorm.*max_norm to None"):
        he.hvp(model, mean_loss, vectors, data=tokens)
    codes = [finding.code for finding in he.doctor(model, mean_loss, data=tokens, seconds=1).findings]
    assert "embedding-max-norm" in codes
    assert same(dict(model.state_dict()), dict(before))
    embedding = model[0]
    embedding.weight.data = torch.renorm(embedding.weight.data, embedding.norm_type, 0, embedding.max_norm)
    embedding.max_norm = None
    assert he.hvp(model, mean_loss, vectors, data=tokens)["full"].norm() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_scripted_models_are_left_as_they_are() -> None:
    case = mlp()
    scripted = torch.jit.trace(case.model, case.data[0][0])
    before = copy.deepcopy(scripted.state_dict())
    size = sum(p.numel() for p in scripted.parameters())
    he.hvp(scripted, case.loss, {"full": torch.ones(1, size)}, data=case.data)
    assert same(dict(scripted.state_dict()), dict(before))
