"""`Vector.bind`: a torch model whose parameters and gradients are views of two Vectors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from privopt import Optimizer, Vector

torch = pytest.importorskip("torch")


def two_layers() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def backward(model: torch.nn.Module) -> None:
    x = torch.arange(6.0).reshape(2, 3) / 7
    x = x.to(next(model.parameters()).dtype)
    model(x).square().sum().backward()


def test_a_bound_model_keeps_its_values_and_lies_in_the_two_vectors() -> None:
    model, same = two_layers(), two_layers()
    weights, gradients = Vector.bind(model)
    assert [list(v.layout.names) for v in (weights, gradients)] == [
        [n for n, _ in model.named_parameters()]
    ] * 2
    for (name, parameter), old in zip(model.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(parameter, old)
        assert parameter.data_ptr() == weights.coefs[name].data_ptr()
        assert parameter.grad.data_ptr() == gradients.coefs[name].data_ptr()
    assert gradients.norm() == 0.0


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["zeroed-before", "zeroed-after"])
def test_a_bound_model_trains_as_under_torchs_optimizer(set_to_none: bool, first: bool) -> None:
    model, other = two_layers(), two_layers()
    weights, gradients = Vector.bind(model)
    ours = Optimizer(0.1, modules=["momentum"])
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        if first:
            model.zero_grad(set_to_none=set_to_none)
        backward(model)
        ours.step(gradients, weights)
        if not first:
            model.zero_grad(set_to_none=set_to_none)
        theirs.zero_grad()
        backward(other)
        theirs.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_step_attaches_gradients_again_that_backward_made_elsewhere() -> None:
    model = two_layers()
    weights, gradients = Vector.bind(model)
    backward(model)
    expected = gradients.copy()
    model.zero_grad()
    backward(model)
    assert model[0].weight.grad.data_ptr() != gradients.coefs["0.weight"].data_ptr()
    gradients *= 0.0
    updates = Optimizer(1.0).compute_updates(gradients, weights)
    assert updates.equals(-expected)
    assert gradients.equals(expected)
    assert model[0].weight.grad.data_ptr() == gradients.coefs["0.weight"].data_ptr()


def test_a_parameter_outside_of_the_loss_has_gradient_zero() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
    weights, gradients = Vector.bind(model)
    gradients += 1.0  # what an earlier loss left
    model.zero_grad()
    model[0](torch.ones(1, 2)).sum().backward()
    Optimizer(0.1).step(gradients, weights)
    assert {name: float(g.abs().sum()) for name, g in gradients.coefs.items()} == {
        "0.weight": 2.0,
        "0.bias": 1.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_a_step_without_any_gradient_is_an_error_and_counts_for_nothing() -> None:
    model = two_layers()
    weights, gradients = Vector.bind(model)
    optimizer, before = Optimizer(0.1, modules=["adam"]), weights.copy()
    backward(model)
    model.zero_grad()
    with pytest.raises(ValueError, match=r"gradient of at least one parameter.*loss.backward\(\) before"):
        optimizer.step(gradients, weights)
    assert weights.equals(before)
    assert optimizer.get_state()["modules.0.adam"]["step"] == 0


def test_gradients_that_were_there_are_kept_sparse_ones_too() -> None:
    model = torch.nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1, 1, 3])).sum().backward()
    _, gradients = Vector.bind(model)
    wanted = [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]
    assert gradients.coefs["weight"].tolist() == wanted
    model.zero_grad()
    model(torch.tensor([1, 1, 3])).sum().backward()
    gradients *= 0.0
    assert (
        Optimizer(1.0).compute_updates(gradients, gradients).coefs["weight"].tolist()
        == (-np.array(wanted)).tolist()
    )


def test_frozen_parameters_stay_out_and_where_they_were() -> None:
    model = two_layers()
    model[0].requires_grad_(False)
    place = model[0].weight.data_ptr()
    weights, gradients = Vector.bind(model)
    assert list(weights.layout.names) == ["2.weight", "2.bias"]
    backward(model)
    Optimizer(0.1).step(gradients, weights)
    assert model[0].weight.data_ptr() == place
    assert model[0].weight.grad is None
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that require gradients, got none"):
        Vector.bind(model)


def test_parameters_of_several_dtypes_are_bound_each_in_its_own() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 1).double()])
    weights, gradients = Vector.bind(model)
    model[1](model[0](torch.ones(1, 2)).double()).sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Optimizer(0.5).step(gradients, weights)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is before[name].dtype
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * parameter.grad)
    assert len(weights.layout.blocks) == 2


def test_one_parameter_at_two_places_is_bound_once_and_moves_both() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    weights, gradients = Vector.bind(model)
    assert list(weights.layout.names) == ["a.weight", "a.bias", "b.bias"]
    model["b"](model["a"](torch.ones(1, 2))).sum().backward()
    Optimizer(0.1).step(gradients, weights)
    assert model["b"].weight is model["a"].weight
    assert model["b"].weight.data_ptr() == weights.coefs["a.weight"].data_ptr()


@pytest.mark.parametrize("frozen", [False, True])
def test_two_parameters_in_one_memory_are_refused_and_nothing_is_bound(frozen: bool) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = torch.nn.Parameter(model["a"].weight.data.t(), requires_grad=not frozen)
    place = model["a"].weight.data_ptr()
    with pytest.raises(ValueError, match=r"memory of their own, got 'a.weight' and 'b.weight'"):
        Vector.bind(model)
    assert model["a"].weight.data_ptr() == place
    assert model["a"].weight.grad is None


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda model: model.double(), "moved"),
        (
            lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
            "replaced|moved",
        ),
        (Vector.bind, "moved"),
        (lambda model: model[2].double(), "moved"),
    ],
    ids=["converted", "assigned", "bound-again", "a-part-converted"],
)
def test_a_model_that_was_moved_is_noticed(change: object, how: str) -> None:
    model = two_layers()
    weights, gradients = Vector.bind(model)
    backward(model)
    change(model)  # type: ignore[operator]
    gc.collect()

    def steps(number: int) -> None:
        for _ in range(number):
            Optimizer(0.1).step(gradients, weights)

    # Where only a part of the model was moved: within as many steps as it has tensors.
    with pytest.raises(ValueError, match=rf"got '.*' ({how}) since .*Vector.bind\(model\) again"):
        steps(len(weights.layout))


def test_loading_weights_in_place_leaves_a_model_bound() -> None:
    model, other = two_layers(), two_layers()
    weights, gradients = Vector.bind(model)
    with torch.no_grad():
        other[0].bias += 1.0
    model.load_state_dict(other.state_dict())
    assert weights.equals(Vector.build(dict(other.named_parameters())))
    backward(model)
    Optimizer(0.1).step(gradients, weights)


def test_copies_of_bound_gradients_are_plain_and_take_no_parameter_over() -> None:
    model = two_layers()
    _, gradients = Vector.bind(model)
    backward(model)
    place, made = model[0].weight.grad.data_ptr(), pickle.dumps(gradients)
    for other in (gradients.copy(), copy.deepcopy(gradients), pickle.loads(made)):  # noqa: S301 - bytes made a line above
        assert type(other) is Vector
        assert other.equals(gradients)
        Optimizer(0.1).step(other, other.copy())
    assert model[0].weight.grad.data_ptr() == place


def test_gradients_keep_no_model_and_are_stepped_on_without_one() -> None:
    model = two_layers()
    gone = weakref.ref(model)
    weights, gradients = Vector.bind(model)
    del model
    gc.collect()
    assert gone() is None
    gradients += 1.0
    before = weights.copy()
    Optimizer(0.5).step(gradients, weights)
    assert weights.equals(before - 0.5)


def test_what_cannot_be_bound_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Expected a torch.nn.Module, got dict. Vector.build"):
        Vector.bind({"w": np.ones(2)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lazy 'weight'. Run one batch"):
        Vector.bind(torch.nn.LazyLinear(2))
    with pytest.raises(ValueError, match="'weight' on the meta device"):
        Vector.bind(torch.nn.Linear(2, 1, device="meta"))
