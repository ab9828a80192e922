"""Models: what they start at, what shapes they take, and how one's own factory is told its mistakes."""

import sys

import numpy as np
import pytest

from privopt.setup.models import ModelError, build
from privopt.setup.tables import Model

torch = pytest.importorskip("torch")


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module of the user's own, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(body, name="mine_abc"):
        (tmp_path / f"{name}.py").write_text(f"import torch\n{body}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return f"{name}:make"

    return write


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_scores_have_the_number_of_classes(name):
    model = build(Model(name=name), (1, 8, 8), 10, seed=0)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert model(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


def test_linear_has_650_parameters_on_digits_and_starts_at_zero():
    start = weights(build(Model(), (1, 8, 8), 10, seed=3))
    assert start.size == 650
    assert not start.any()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_weights_follow_from_the_seed_alone_and_the_global_state_is_kept(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(build(Model(name=name), (1, 8, 8), 10, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(first, weights(build(Model(name=name), (1, 8, 8), 10, seed=1)))
    assert (first != weights(build(Model(name=name), (1, 8, 8), 10, seed=2))).any()


def test_widths_and_channels_are_those_of_the_table():
    mlp = build(Model(name="mlp", hidden=(7, 5)), (30,), 2, seed=0)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(7, 30), (7,), (5, 7), (5,), (2, 5), (2,)]
    cnn = build(Model(name="cnn", channels=(4,)), (3, 9, 9), 2, seed=0)
    assert [tuple(p.shape) for p in cnn.parameters()] == [(4, 3, 3, 3), (4,), (2, 4 * 4 * 4), (2,)]


def test_a_cnn_is_refused_for_rows_without_height_and_for_tiny_images():
    with pytest.raises(ModelError, match=r"\(30,\).*linear or mlp"):
        build(Model(name="cnn"), (30,), 2, seed=0)
    with pytest.raises(ModelError, match=r"3 x 3.*model\.channels"):
        build(Model(name="cnn"), (1, 3, 3), 2, seed=0)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"linear, mlp, cnn.*'resnet'"):
        build(Model(name="resnet"), (4,), 2, seed=0)


def test_a_factory_of_ones_own_gets_shape_classes_and_options(factory):
    name = factory(
        "def make(shape, classes, width=1):\n return torch.nn.Sequential("
        "torch.nn.Linear(shape[0], width), torch.nn.Dropout(), torch.nn.Linear(width, classes))"
    )
    spec = Model(name=name, options={"width": 9})
    state = torch.get_rng_state()
    model = build(spec, (4,), 3, seed=0)
    assert model.training
    assert model[0].weight.shape == (9, 4)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(weights(model), weights(build(spec, (4,), 3, seed=0)))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def make(shape, classes): return 3", "torch.nn.Module, got int"),
        ("def make(shape): return 3", "got TypeError"),
        ("def make(shape, classes): return torch.nn.Linear(shape[0], 7)", r"got \(2, 7\)"),
        ("def make(shape, classes): return torch.nn.Linear(99, classes)", r"rows of shape \(4,\)"),
        ("def make(shape, classes): return torch.nn.Identity()", "trainable parameters, got none"),
        ("made = 1", "function 'make' in module mine_abc, got none"),
        ("def make(:", "SyntaxError"),
        ("import absent_xyz", "no module named 'absent_xyz'"),
    ],
)
def test_a_factory_that_does_not_fit_is_told_how(factory, body, says):
    with pytest.raises(ModelError, match=says):
        build(Model(name=factory(body)), (4,), 3, seed=0)


def test_a_missing_module_says_where_it_was_looked_for(factory):
    with pytest.raises(ModelError, match=r"no module named 'absent_xyz'\. It is looked for"):
        build(Model(name="absent_xyz:make"), (4,), 3, seed=0)


def test_running_statistics_are_refused_with_the_replacement_named(tmp_path, monkeypatch):
    (tmp_path / "with_norm.py").write_text(
        "from torch import nn\n"
        "def make(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"running_mean.*GroupNorm or LayerNorm"):
        build(Model(name="with_norm:make"), (4,), 2, 0)
