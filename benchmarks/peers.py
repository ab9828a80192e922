"""One optimizer step by us and by each peer, every one with parameters of its own: the sides that are timed.

`load` gives a side its gradients, `step` makes one step, and `weights` reads what it arrived at.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from privopt import Optimizer, Vector

from .harness import Unavailable
from .problems import Array, Step

__all__ = [
    "Bound",
    "Declearn",
    "Flat",
    "FlatJax",
    "Optax",
    "Packed",
    "TorchForeach",
    "TorchFused",
    "Torchzero",
    "adam_chain",
    "scaffold_chain",
]

# Global clipping, Adam, learning rate, decoupled decay: torch's defaults, a clipping that takes part.
MAX_NORM, LRATE, BETAS, EPS, DECAY = 1.0, 1e-3, (0.9, 0.999), 1e-8, 1e-2
# FedProx's strength.
ALPHA = 0.01


# ---- ours -------------------------------------------------------------------------------------------------


def adam_chain(eps: float = EPS) -> Optimizer:
    """What `clip_grad_norm_` and `torch.optim.AdamW` do, as a privopt optimizer."""
    return Optimizer(
        lrate=LRATE,
        w_decay=LRATE * DECAY,  # torch multiplies the decay by the rate, we do not
        modules=[
            ("l2-global-clipping", {"max_norm": MAX_NORM}),
            ("adam", {"beta_1": BETAS[0], "beta_2": BETAS[1], "eps": eps}),
        ],
    )


def scaffold_chain(control: Mapping[str, Array], server: Mapping[str, Array]) -> Optimizer:
    """FedProx, Scaffold and SGD in the middle of a round, with control variates that are not zero."""
    from privopt.modules import ScaffoldClient

    module = ScaffoldClient()
    module.control, module.server = vector(control), vector(server)
    return Optimizer(lrate=LRATE, regularizers=[("fedprox", {"alpha": ALPHA})], modules=[module])


def vector(arrays: Mapping[str, Array]) -> Vector:
    """A Vector of torch tensors with these values."""
    return Vector.build({name: torch.from_numpy(array) for name, array in arrays.items()})


class Flat(Step):
    """Ours, with weights and gradients each in one flat buffer."""

    name = "privopt"

    def __init__(self, weights: Mapping[str, Array], optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.params = vector(weights)
        self.grads = self.params.full_like(0.0)
        self._views = self.grads.coefs

    def load(self, gradients: Mapping[str, Array]) -> None:
        for name, view in self._views.items():
            view.copy_(torch.from_numpy(gradients[name]))

    def step(self) -> None:
        self.optimizer.step(self.grads, self.params)

    def weights(self) -> Mapping[str, Array]:
        return {name: view.numpy() for name, view in self.params.coefs.items()}


class Packed(Flat):
    """Ours, with a `.grad` for each parameter, copied into the flat buffer each step."""

    def __init__(self, weights: Mapping[str, Array], optimizer: Optimizer) -> None:
        super().__init__(weights, optimizer)
        self.model = {name: torch.nn.Parameter(view) for name, view in self.params.coefs.items()}

    def load(self, gradients: Mapping[str, Array]) -> None:
        for name, param in self.model.items():
            param.grad = torch.from_numpy(gradients[name].copy())

    def step(self) -> None:
        self.grads.pack({name: param.grad for name, param in self.model.items()})
        super().step()


class Bound(Flat):
    """Ours, with each parameter's `.grad` a view of the flat buffer, into which autograd writes."""

    def __init__(self, weights: Mapping[str, Array], optimizer: Optimizer) -> None:
        super().__init__(weights, optimizer)
        self.model = {name: torch.nn.Parameter(view) for name, view in self.params.coefs.items()}
        for name, param in self.model.items():
            param.grad = self._views[name]

    def load(self, gradients: Mapping[str, Array]) -> None:
        for param in self.model.values():
            assert param.grad is not None
            param.grad.zero_()
        parts = ((p * torch.from_numpy(gradients[name])).sum() for name, p in self.model.items())
        # The gradient of this loss is what was given, and backward is what puts it there.
        torch.stack(list(parts)).sum().backward()  # type: ignore[no-untyped-call]  # torch types it only in part


class FlatJax(Step):
    """Ours on jax's arrays, one flat array each, compiled by `jax.jit`."""

    name = "privopt"

    def __init__(self, weights: Mapping[str, Array], optimizer: Optimizer) -> None:
        self._jax = _import("jax")
        self.optimizer = optimizer
        self.params = self._vector(weights)

    def _vector(self, arrays: Mapping[str, Array]) -> Vector:
        return Vector.build({name: self._jax.numpy.array(array) for name, array in arrays.items()})

    def load(self, gradients: Mapping[str, Array]) -> None:
        self.grads = self._vector(gradients)

    def step(self) -> None:
        self.optimizer.step(self.grads, self.params)
        self._jax.block_until_ready(self.params.buffers)

    def weights(self) -> Mapping[str, Array]:
        return {name: np.asarray(array) for name, array in self.params.coefs.items()}


# ---- torch ------------------------------------------------------------------------------------------------


class _Torch(Step):
    """Parameters that each have a `.grad`, as a model's do."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.params = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in weights.items()}
        self._list: list[torch.Tensor] = list(self.params.values())

    def load(self, gradients: Mapping[str, Array]) -> None:
        for name, param in self.params.items():
            param.grad = torch.from_numpy(gradients[name].copy())

    def weights(self) -> Mapping[str, Array]:
        return {name: param.detach().numpy() for name, param in self.params.items()}

    def _grads(self) -> list[torch.Tensor]:
        return [p.grad for p in self._list if p.grad is not None]


class TorchFused(_Torch):
    """`clip_grad_norm_` and fused AdamW."""

    name = "torch fused"

    def __init__(self, weights: Mapping[str, Array], eps: float = EPS) -> None:
        super().__init__(weights)
        self.optimizer = torch.optim.AdamW(
            self._list, lr=LRATE, betas=BETAS, eps=eps, weight_decay=DECAY, fused=True
        )

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._list, MAX_NORM)
        self.optimizer.step()


class TorchForeach(_Torch):
    """FedProx, Scaffold and SGD as one writes them by hand: what is constant in a round is computed once."""

    name = "torch foreach"

    def __init__(
        self, weights: Mapping[str, Array], control: Mapping[str, Array], server: Mapping[str, Array]
    ) -> None:
        super().__init__(weights)
        self.reference = [p.detach().clone() for p in self._list]
        self.total = [torch.zeros_like(p) for p in self.reference]
        self.correction = [torch.from_numpy(np.asarray(control[name] - server[name])) for name in weights]

    @torch.no_grad()
    def step(self) -> None:
        grads = self._grads()
        torch._foreach_add_(grads, torch._foreach_sub(self._list, self.reference), alpha=ALPHA)
        torch._foreach_add_(self.total, grads)
        torch._foreach_sub_(grads, self.correction)
        torch._foreach_add_(self._list, grads, alpha=-LRATE)


# ---- others -----------------------------------------------------------------------------------------------


class Torchzero(_Torch):
    """torchzero: the same chain of its modules.

    Its Adam adds `eps` before the bias correction of the second moment, so both sides take an `eps` that is
    too small to matter.
    """

    name = "torchzero"
    eps = 1e-20

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__(weights)
        tz = _import("torchzero")
        self.optimizer = tz.Optimizer(
            self._list,
            tz.m.ClipNorm(MAX_NORM, dim="global"),
            tz.m.Adam(BETAS[0], BETAS[1], eps=self.eps),
            tz.m.WeightDecay(DECAY),
            tz.m.LR(LRATE),
        )

    def step(self) -> None:
        self.optimizer.step()


class Declearn:
    """declearn on its torch vectors, its decay being decoupled from the rate as ours is."""

    name = "declearn"

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._vector = _import("declearn.model.torch").TorchVector
        self.params = {n: torch.from_numpy(a.copy()) for n, a in weights.items()}
        self.optimizer = _import("declearn.optimizer").Optimizer(
            lrate=LRATE,
            w_decay=LRATE * DECAY,
            modules=[
                ("l2-global-clipping", {"max_norm": MAX_NORM}),
                ("adam", {"beta_1": BETAS[0], "beta_2": BETAS[1], "eps": EPS}),
            ],
        )

    def load(self, gradients: Mapping[str, Array]) -> None:
        self.grads = self._vector({n: torch.from_numpy(a.copy()) for n, a in gradients.items()})

    # The two methods that declearn's optimizer asks of a model, without the copies of its own model class.
    def get_weights(self, trainable: bool) -> Any:
        """The weights as declearn's vector."""
        return self._vector(self.params)

    def apply_updates(self, updates: Any) -> None:
        """Add the updates to the weights."""
        for name, value in updates.coefs.items():
            self.params[name].add_(value)

    def step(self) -> None:
        self.apply_updates(self.optimizer.compute_updates_from_gradients(self, self.grads))

    def weights(self) -> Mapping[str, Array]:
        return {name: param.numpy() for name, param in self.params.items()}


class Optax:
    """optax under `jax.jit`, with weights and state donated, so that the step may write into their memory."""

    name = "optax jit"

    def __init__(self, weights: Mapping[str, Array]) -> None:
        jax, optax = _import("jax"), _import("optax")
        self._jax = jax
        chain = optax.chain(
            optax.clip_by_global_norm(MAX_NORM),
            optax.scale_by_adam(*BETAS, eps=EPS),
            optax.add_decayed_weights(DECAY),
            optax.scale(-LRATE),
        )

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = chain.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self.params = {name: jax.numpy.array(a) for name, a in weights.items()}
        self.state = chain.init(self.params)

    def load(self, gradients: Mapping[str, Array]) -> None:
        self.grads = {name: self._jax.numpy.array(a) for name, a in gradients.items()}

    def step(self) -> None:
        self.params, self.state = self._step(self.params, self.state, self.grads)
        self._jax.block_until_ready((self.params, self.state))

    def weights(self) -> Mapping[str, Array]:
        return {name: np.asarray(a) for name, a in self.params.items()}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{error}. Run: pip install 'privopt[bench]'") from error
