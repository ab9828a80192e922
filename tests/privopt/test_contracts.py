"""Every plug-in of the package under the public contract, and plug-ins that break it caught by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from privopt import Optimizer
from privopt.testing import (
    AgreementContract,
    PluginContract,
    SharingContract,
    check_survives_kill,
    registered,
)

PLUGINS = registered("privopt")
STEPPING = [plugin for plugin in PLUGINS if plugin._kind() in ("module", "regularizer")]

CONFIGS = {
    "adabelief": [{"amsgrad": True}],
    "adam": [{"amsgrad": True}],
    "lookahead": [{"period": 2}],
    "momentum": [{"nesterov": True}],
    "nadam": [{"amsgrad": True}],
    "normalize": [{"per_tensor": True}],
    "radam": [{"beta_2": 0.95}],  # within the steps of a life both of its branches
    "scaffold-client": [{"option": 1}],
    "schedule-free": [{"power": 1.5}],
}
"""What takes another way through a plug-in than its defaults."""

ALIASING = [p for p in PLUGINS if p.name in ("mime-lite-client", "scaffold-client", "scaffold-server")]
"""What keeps the very Vector of an AuxVar that it received."""


class TestBuiltIn(PluginContract):
    plugins = PLUGINS
    configs = CONFIGS
    values: ClassVar[Mapping[str, Any]] = {
        "scaffold-client.option": st.sampled_from([1, 2]),
        "one-cycle.anneal_strategy": st.sampled_from(["cos", "linear"]),
        "piecewise.boundaries": st.just([3, 9]),
        "piecewise.factors": st.lists(st.floats(0.1, 2.0), min_size=2, max_size=2),
        "piecewise.values": st.just([]),
        "reduce-on-plateau.mode": st.sampled_from(["min", "max"]),
        "reduce-on-plateau.threshold_mode": st.sampled_from(["rel", "abs"]),
        "warmup.then": st.sampled_from(["cosine", ["linear", {"duration": 4}]]),
    }
    frameworks = ("numpy", "torch")
    dtypes = ("float32",)
    examples = 12
    test_what_is_received_is_copied = None


class TestBuiltInOnJax(AgreementContract):
    plugins = STEPPING
    frameworks = ("jax",)
    dtypes = ("float32",)
    test_executors_agree = None


class TestReceived(SharingContract):
    plugins = tuple(p for p in PLUGINS if getattr(p, "aux_name", None) is not None and p not in ALIASING)
    test_what_is_sent_adds_up_as_declared = test_what_is_received_is_verified = None


@pytest.mark.xfail(strict=True, reason="they keep what they received without a copy")
class TestReceivedWithoutACopy(SharingContract):
    plugins = ALIASING
    test_what_is_sent_adds_up_as_declared = test_what_is_received_is_verified = None


@pytest.mark.slow
class TestBuiltInCompiledByFrameworks(AgreementContract):
    plugins = STEPPING
    configs = CONFIGS
    frameworks = ("jax", "tensorflow")


@pytest.mark.slow
class TestBuiltInInDoublePrecision(AgreementContract):
    plugins = STEPPING
    configs = CONFIGS
    frameworks = ("numpy", "torch")
    dtypes = ("float64",)


def test_a_chain_that_is_killed_and_started_again_ends_where_an_undisturbed_one_does() -> None:
    chain = Optimizer(
        ("cosine", {"base": 0.1, "duration": 30}),
        w_decay=0.01,
        regularizers=["fedprox"],
        modules=[
            "scaffold-client",
            ("adam", {"amsgrad": True}),
            ("momentum", {"round_reset": True}),
            "lookahead",
        ],
    )
    check_survives_kill(chain.get_config())
