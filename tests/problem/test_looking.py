import torch
from torch import nn

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem.looking import needs_gradients
from hvp_engine.problem.objective import Objective

BATCH = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def needs(loss, batch=BATCH):
    torch.manual_seed(0)
    objective = Objective(nn.Linear(3, 2), loss, [batch], "fp32")
    with objective.arithmetic():
        return needs_gradients(objective.evaluate, batch)


def slope(model, x):
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0].square().mean()


def test_a_loss_that_differentiates_inside_needs_gradients():
    assert needs(slope)
    assert not needs(lambda model, x: model(x).square().mean())


def test_a_loss_that_asks_whether_gradients_are_on_needs_them():
    assert needs(lambda model, x: model(x).square().mean() * (2 if torch.is_grad_enabled() else 1))


def test_the_whole_batch_tells_where_a_few_samples_define_no_loss():
    def whole(loss):
        def checked(model, x):
            if len(x) < 5:
                raise ValueError("nodes of one graph")
            return loss(model, x)

        return checked

    assert needs(whole(slope))
    assert not needs(whole(lambda model, x: model(x).square().mean()))


def test_a_loss_that_fails_either_way_is_left_to_those_who_evaluate_it():
    def failing(model, x):
        raise ValueError("no")

    assert not needs(failing)


def test_looks_make_no_graph_where_none_is_needed():
    modes = []

    def loss(model, x):
        modes.append(torch.is_grad_enabled())
        return model(x).square().mean()

    objective = Objective(nn.Linear(3, 2), loss, [BATCH], "fp32")
    with objective.arithmetic(), objective.looking(BATCH):
        total, _ = objective.evaluate(BATCH)
    assert not total.requires_grad and modes == [False, True, False]


def test_a_spot_value_is_one_of_the_job_itself():
    objective = Objective(nn.Linear(3, 2), slope, [BATCH], "fp32")
    with objective.arithmetic():
        total, _ = objective.evaluate(BATCH[:2])
    assert objective.spot_value(BATCH) == float(total.detach())


def test_errors_of_the_loss_reach_the_one_who_looks():
    def failing(model, x):
        raise ValueError("no")

    objective = Objective(nn.Linear(3, 2), failing, [BATCH], "fp32")
    try:
        objective.spot_value(BATCH)
    except ObjectiveError as error:
        assert "ValueError: no" in str(error)
    else:
        raise AssertionError
