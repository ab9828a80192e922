"""Clipping: engines against a loop of their own, joint bounds, NaN, and models left as they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dp
from dp import LoopClipper, OpacusClipper, PrivacyParameterError, UnsupportedLayer
from dp.clipping import BookkeepingClipper, Clipper, VmapClipper, make_clipper
from dp.events import Neighboring

N = 11
ENGINES: list[Any] = [OpacusClipper, LoopClipper, BookkeepingClipper, VmapClipper]
FAST = [OpacusClipper, BookkeepingClipper]


class Shared(nn.Module):
    """One linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(torch.tanh(self.inner(x))))


class Words(nn.Module):
    """An embedding, a norm, and a linear layer over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.norm(self.embedding(x)))).mean(1))


class Raw(nn.Module):
    """A parameter of its own, which Opacus has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.scale)


class Unused(nn.Module):
    """A layer that the batch never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 3)
        self.idle = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def padded() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 8, padding_idx=2), nn.Flatten(), nn.Linear(32, 3))


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def backbone() -> nn.Module:
    """A pretrained part with a batch norm whose statistics are constants, and a head."""
    fixed = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()).eval().requires_grad_(False)
    return nn.Sequential(fixed, nn.Linear(5, 3))


def switched_off() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
        ),
        (1, 5, 5),
    ),
    "shared": (Shared, (6,)),
    "words": (Words, None),
    "raw parameter": (Raw, (6,)),
    "unused": (Unused, (6,)),
    "frozen": (frozen, (6,)),
    "padded": (padded, None),
    "in place": (in_place, (6,)),
    "backbone": (backbone, (6,)),
    "dropout in evaluation mode": (switched_off, (6,)),
}


def make(name: str, scale: float = 1.0) -> tuple[nn.Module, Any, Any]:
    build, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build()
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, N)
    if shape is None:
        return model, rng.integers(0, 9, (N, 4)), y
    return model, (scale * rng.normal(size=(N, *shape))).astype(np.float32), y


def by_hand(model: nn.Module, x: Any, y: Any, clip_norm: float) -> tuple[dict[str, Any], list[float]]:
    """The clipped sum and the norms before clipping, in float64 throughout, one sample at a time."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: np.zeros(tuple(p.shape)) for n, p in params.items()}
    norms = []
    for i in range(len(y)):
        out = model(torch.as_tensor(x[i : i + 1]))
        loss = nn.functional.cross_entropy(out, torch.as_tensor(y[i : i + 1]))
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        arrays = [
            np.zeros(tuple(p.shape)) if g is None else g.double().numpy()
            for g, p in zip(grads, params.values(), strict=True)
        ]
        norms.append(math.sqrt(sum(float((a * a).sum()) for a in arrays)))
        for name, a in zip(params, arrays, strict=True):
            total[name] += a * min(1.0, clip_norm / max(norms[-1], 1e-300))
    return total, norms


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_engines_equal_a_per_sample_loop(name: str, engine: Callable[[nn.Module], Clipper]) -> None:
    model, x, y = make(name)
    if name == "raw parameter" and engine is BookkeepingClipper:
        engine = make_clipper  # which takes another engine: there is no rule for the layer
    _, norms = by_hand(model, x, y, 1.0)
    clip_norm = float(np.median(norms))
    expected, _ = by_hand(model, x, y, clip_norm)
    assert min(norms) < clip_norm < max(norms)
    got = engine(model).clipped_sum(x, y, clip_norm)
    assert list(got.values) == list(expected)
    scale = math.sqrt(sum(float((v**2).sum()) for v in expected.values()))
    for key, value in expected.items():
        assert got.values[key].shape == value.shape
        assert got.values[key].dtype == np.float64
        assert np.linalg.norm(got.values[key] - value) <= 1e-5 * scale
    assert (got.count, got.nonfinite, got.clip_norm) == (N, 0, clip_norm)


@pytest.mark.parametrize("engine", [OpacusClipper, BookkeepingClipper, VmapClipper])
@pytest.mark.parametrize("physical_batch", [1, 2, 7, N, 100])
def test_the_size_of_chunks_changes_nothing(physical_batch: int, engine: Any) -> None:
    model, x, y = make("mlp")
    whole = engine(model).clipped_sum(x, y, 0.5).flatten()
    chunked = engine(model, physical_batch=physical_batch).clipped_sum(x, y, 0.5).flatten()
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("engine", "reached"), [(OpacusClipper, 1e-9), (BookkeepingClipper, 2e-6)])
def test_one_samples_gradient_over_twenty_tensors_is_at_most_c_jointly(engine: Any, reached: float) -> None:
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(9):
            layers += [nn.Linear(12, 12), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(12, 3))
    assert len(list(model.parameters())) == 20
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 12)).astype(np.float32), rng.integers(0, 3, 30)
    _, norms = by_hand(model, x, y, 1.0)
    clip_norm = 0.5 * min(norms)
    clipper = engine(model)
    joint, tensors = [], []
    for i in range(30):
        values = clipper.clipped_sum(x[i : i + 1], y[i : i + 1], clip_norm)
        joint.append(float(np.linalg.norm(values.flatten())))
        tensors.append([float(np.linalg.norm(v)) for v in values.values.values()])
    assert max(joint) <= clip_norm
    # Clipping was at work, and jointly: clipping each tensor to C by itself would leave all of them longer.
    assert min(joint) >= clip_norm * (1 - reached)
    assert max(max(t) for t in tensors) < 0.99 * clip_norm


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_samples_without_a_finite_gradient_are_zeroed_and_counted(engine: Any, poison: float) -> None:
    model, x, y = make("mlp")
    clipper = engine(model)
    clean = clipper.clipped_sum(np.delete(x, [2, 7], axis=0), np.delete(y, [2, 7]), 0.5)
    x[[2, 7]] = poison
    got = clipper.clipped_sum(x, y, 0.5)
    assert (got.count, got.nonfinite) == (N, 2)
    np.testing.assert_allclose(got.flatten(), clean.flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_whose_square_overflows_float32_is_clipped_not_dropped(engine: Any) -> None:
    saturated, huge = nn.Linear(3, 2), np.full((1, 3), 1e30, np.float32)
    got = engine(saturated).clipped_sum(huge, np.array([0]), 0.5)
    if got.flatten().any():
        assert np.linalg.norm(got.flatten()) == pytest.approx(0.5)
    other = engine(saturated).clipped_sum(huge, np.array([1]), 0.5)
    assert got.nonfinite == other.nonfinite == 0
    # A saturated softmax is right about one of the two classes, and wrong about the other.
    assert got.flatten().any() or other.flatten().any()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_batch_gives_zeros(engine: Any) -> None:
    model, x, y = make("cnn")
    got = engine(model).clipped_sum(x[:0], y[:0], 1.0)
    assert got.count == 0
    assert {n: v.shape for n, v in got.values.items()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }
    assert not got.flatten().any()


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_gradients_stay_zero(engine: Any) -> None:
    model = nn.Linear(3, 2)
    got = engine(model, lambda out, y: 0.0 * out.sum(1)).clipped_sum(
        np.ones((4, 3), np.float32), np.zeros(4), 1.0
    )
    assert not got.flatten().any()
    assert got.nonfinite == 0


@pytest.mark.parametrize("engine", [OpacusClipper, BookkeepingClipper, VmapClipper])
def test_the_model_is_left_as_it_was(engine: Any) -> None:
    model, x, y = make("mlp")
    model[1].eval()  # type: ignore[index]
    first = next(model.parameters())
    first.grad = torch.full_like(first, 3.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    attributes = {m: set(vars(m)) for m in model.modules()}
    engine(model).clipped_sum(x, y, 1.0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert first.grad is not None
    assert bool((first.grad == 3.0).all())
    assert [p.grad is None for p in model.parameters()] == [False, True, True, True]
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert {m: set(vars(m)) for m in model.modules()} == attributes
    with pytest.raises(ValueError, match="one loss a sample"):
        engine(model, nn.functional.cross_entropy).clipped_sum(x, y, 1.0)
    assert {m: set(vars(m)) for m in model.modules()} == attributes
    # Two clippers may share a model.
    assert np.array_equal(
        engine(model).clipped_sum(x, y, 1.0).flatten(),
        engine(model).clipped_sum(x, y, 1.0).flatten(),
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.BatchNorm1d(6), "GroupNorm or LayerNorm"),
        (nn.BatchNorm2d(6), "GroupNorm"),
        (nn.SyncBatchNorm(6), "GroupNorm"),
        (nn.InstanceNorm1d(6, track_running_stats=True), "track_running_stats=False"),
    ],
)
def test_layers_that_mix_samples_are_refused_by_name(engine: Any, layer: nn.Module, remedy: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(layer))
    with pytest.raises(UnsupportedLayer, match=rf"{type(layer).__name__} at '1\.0'.*{remedy}"):
        engine(model)


@pytest.mark.parametrize(
    ("layer", "remedy"), [(nn.LSTM(6, 6), "DPLSTM"), (nn.MultiheadAttention(6, 2), "DPMultiheadAttention")]
)
def test_layers_that_opacus_does_not_know_are_refused_with_a_replacement(
    layer: nn.Module, remedy: str
) -> None:
    with pytest.raises(UnsupportedLayer, match=remedy):
        OpacusClipper(nn.Sequential(layer))


@pytest.mark.parametrize("engine", FAST)
def test_a_parameter_used_behind_its_layers_back_is_found(engine: Any) -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + nn.functional.linear(x, self.layer.weight)

    _, x, y = make("linear")
    with pytest.raises(UnsupportedLayer, match=r"layer\.weight"):
        engine(Behind()).clipped_sum(x, y, 1.0)


@pytest.mark.parametrize("engine", FAST)
def test_a_parameter_used_behind_its_layers_back_is_found_though_its_first_gradients_are_zero(
    engine: Any,
) -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x) + nn.functional.linear(x, self.layer.weight))

    _, x, y = make("linear")
    model = Behind()
    clipper = engine(model)
    clipper.clipped_sum(x, y, 1.0)  # a head of zeros lets no gradient through
    nn.init.ones_(model.head.weight[:1])
    with pytest.raises(UnsupportedLayer, match=r"layer\.weight"):
        clipper.clipped_sum(x, y, 1.0)


class Mixed(nn.Module):
    """Samples that meet where no layer's name says so."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.3)
        self.outer = nn.Linear(6, 3)
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.mix(self.drop(self.inner(x))))


def attention(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ x.T, dim=1) @ x


def normalized(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("mix", [lambda x: x - x.mean(0), normalized, attention, lambda x: x / len(x)])
def test_samples_that_mix_without_a_layer_that_says_so_are_found(mix: Any, engine: Any) -> None:
    _, x, y = make("linear")
    with pytest.raises(UnsupportedLayer, match="other samples"):
        engine(Mixed(mix)).clipped_sum(x, y, 1.0)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: nn.functional.cross_entropy(out, y, reduction="none") / len(y),
        lambda out, y: nn.functional.cross_entropy(out, y, reduction="none") - out.logsumexp((0, 1)),
    ],
)
def test_losses_that_couple_samples_are_found(loss: Any, engine: Any) -> None:
    model, x, y = make("linear")
    with pytest.raises(UnsupportedLayer, match="other samples"):
        engine(model, loss).clipped_sum(x, y, 1.0)


@pytest.mark.parametrize("engine", FAST)
def test_mixing_is_found_in_the_first_batch_that_can_show_it(engine: Any) -> None:
    _, x, y = make("linear")
    clipper = engine(Mixed(attention))
    clipper.clipped_sum(x[:0], y[:0], 1.0)
    clipper.clipped_sum(x[:1], y[:1], 1.0)
    with pytest.raises(UnsupportedLayer, match="other samples"):
        clipper.clipped_sum(x, y, 1.0)


class Keeps(nn.Module):
    """Running statistics by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.head(x)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_keeps_something_of_its_samples_is_refused_and_keeps_nothing(engine: Any) -> None:
    _, x, y = make("linear")
    model = Keeps()
    with pytest.raises(UnsupportedLayer, match="'mean'"):
        engine(model).clipped_sum(x, y, 1.0)
    assert not model.mean.any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("setting", [{"max_norm": 0.1}, {"sparse": True}])
def test_embeddings_that_tell_which_rows_were_used_are_refused(engine: Any, setting: Any) -> None:
    model = nn.Sequential(nn.Embedding(9, 8, **setting), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(UnsupportedLayer, match=f"Embedding at '0'.*{next(iter(setting))}"):
        engine(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_batch_norm_is_refused_once_it_takes_statistics_again(engine: Any) -> None:
    model, x, y = make("backbone")
    clipper = engine(model)
    statistics = model[0][1].running_mean.clone()  # type: ignore[index]
    clipper.clipped_sum(x, y, 1.0)
    assert torch.equal(model[0][1].running_mean, statistics)  # type: ignore[index]
    model.train()
    with pytest.raises(UnsupportedLayer, match=r"BatchNorm1d at '0\.1'"):
        clipper.clipped_sum(x, y, 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_does_not_follow_the_scripts_seed_and_leaves_it_alone(engine: Any) -> None:
    model, x, y = make("dropout in evaluation mode")
    model.train()
    clipper = engine(model)

    def draw(**seed: Any) -> Any:
        torch.manual_seed(0)
        values = clipper.clipped_sum(x, y, 1.0, **seed).flatten()
        assert torch.equal(torch.rand(1), expected)
        return values

    torch.manual_seed(0)
    expected = torch.rand(1)
    assert not np.array_equal(draw(), draw())
    assert np.array_equal(draw(seed=5), draw(seed=5))
    assert not np.array_equal(draw(seed=5), draw(seed=6))


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_of_another_precision_are_taken(engine: Any) -> None:
    model, x, y = make("mlp")
    expected = engine(model).clipped_sum(x, y, 1.0).flatten()
    got = engine(model).clipped_sum(x.astype(np.float64), y.astype(np.int32), 1.0).flatten()
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("engine", FAST)
def test_a_gradient_of_rounding_alone_is_no_reason_to_refuse(engine: Any) -> None:
    # The instance norm undoes whatever scale the group norm gives.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(400, 3)
    x = np.random.default_rng(0).normal(size=(16, 1, 12, 12)).astype(np.float32)
    engine(nn.Sequential(*layers)).clipped_sum(x, np.arange(16) % 3, 1.0)


@pytest.mark.parametrize("engine", FAST)
def test_samples_folded_into_another_axis_are_found(engine: Any) -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.reshape(-1, 3)).reshape(len(x), 2, 3).sum(1)

    _, x, y = make("linear")
    with pytest.raises(UnsupportedLayer, match="first axis"):
        engine(Folded()).clipped_sum(x, y, 1.0)


def test_wrong_arguments_are_named() -> None:
    model, x, y = make("linear")
    with pytest.raises(PrivacyParameterError, match=r"clip_norm=0\.0"):
        OpacusClipper(model).clipped_sum(x, y, 0.0)
    with pytest.raises(PrivacyParameterError, match="clip_norm=nan"):
        LoopClipper(model).clipped_sum(x, y, math.nan)
    with pytest.raises(ValueError, match="inputs as targets"):
        OpacusClipper(model).clipped_sum(x, y[:-1], 1.0)
    with pytest.raises(ValueError, match="physical_batch=0"):
        OpacusClipper(model, physical_batch=0)
    with pytest.raises(ValueError, match="reduction='none'"):
        OpacusClipper(model, nn.functional.cross_entropy).clipped_sum(x, y, 1.0)
    with pytest.raises(ValueError, match="trainable"):
        OpacusClipper(nn.Flatten())


def test_a_clipped_sum_knows_its_sensitivity_and_shows_nothing_private() -> None:
    model, x, y = make("mlp")
    got = OpacusClipper(model).clipped_sum(x, y, 0.25)
    assert got.sensitivity() == 0.25
    assert got.sensitivity(Neighboring.REPLACE_ONE) == 0.5
    assert repr(got) == "<ClippedSum of 4 parameters, 53 values, clip_norm=0.25>"
    again = got.unflatten(got.flatten())
    assert all(np.array_equal(again[n], v) for n, v in got.values.items())
    assert dp.ClippedSum is type(got)
