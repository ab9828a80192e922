"""The holder's policy: a file beside the ledger that nothing but its owner weakens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting import epsilon
from dp.errors import LedgerError, PrivacyParameterError, UnsupportedEvent
from dp.events import Gaussian, Poisson, Repeated, Unpriced
from dp.ledger import Ledger, LedgerKey
from dp.policy import LocalPolicy, PolicyRefused, policy_path

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite", LedgerKey.generate()) as opened:
        yield opened


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "ledger.policy.toml"

    def write(text):
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def test_the_policy_lies_beside_its_ledger(tmp_path):
    assert policy_path(tmp_path / "ledger.sqlite") == tmp_path / "ledger.policy.toml"


@pytest.mark.parametrize(
    ("text", "event", "says"),
    [
        ("min_noise_multiplier = 2.0", EVENT, "noise multiplier of at least 2, got 1.5"),
        ("min_noise_multiplier = 1e-9", Gaussian(0.0), "got 0 in"),
        ('samplers = ["none"]', EVENT, "sampler of 'none', got 'poisson'"),
        ('samplers = ["poisson"]', Gaussian(9.0), "sampler of 'poisson', got 'none'"),
        ("samplers = []", Gaussian(9.0), "none at all"),
        ("max_epsilon = 0.5\nmax_delta = 1e-5", EVENT, "at most ε = 0.5 at δ = 1e-05, got"),
    ],
)
def test_a_release_beyond_the_policy_is_refused_before_anything_is_written(ledger, policy, text, event, says):
    before = ledger.head().sequence
    path = policy(text)
    with pytest.raises(PolicyRefused) as refusal:
        ledger.reserve("icu", event, run="r1")
    assert says in str(refusal.value)
    name = text.split()[0]
    assert f"ask the owner of {path.name} to change {name}" in str(refusal.value)
    assert ledger.head().sequence == before
    path.unlink()


def test_what_the_policy_allows_is_reserved(ledger, policy):
    policy('max_epsilon = 9\nmax_delta = 1e-3\nmin_noise_multiplier = 1.5\nsamplers = ["poisson"]')
    ledger.set_run_budget("icu", run="r1", epsilon=9.0, delta=1e-3)
    ledger.commit(ledger.reserve("icu", EVENT, run="r1"))
    assert ledger.events() == [EVENT]


def test_a_run_without_a_budget_is_bound_by_the_policy_alone(ledger, policy):
    policy("max_epsilon = 6\nmax_delta = 1e-3")
    count = next(n for n in range(1, 100) if epsilon(Repeated(EVENT.event, 5 * n + 5), 1e-3) > 6)
    for _ in range(count):
        ledger.reserve("icu", EVENT, run="r1")
    with pytest.raises(PolicyRefused, match="with this release"):
        ledger.reserve("icu", EVENT, run="r1")
    ledger.reserve("icu", EVENT, run="r2")  # the bound is one run's; a data set's is its budget


@pytest.mark.parametrize(
    ("budget", "name"),
    [((9.0, 1e-5), "max_epsilon"), ((2.0, 1e-2), "max_delta"), ((8.001, 1e-3), "max_epsilon")],
)
def test_a_budget_beyond_the_policy_is_refused(ledger, policy, budget, name):
    policy("max_epsilon = 8\nmax_delta = 1e-3")
    with pytest.raises(PolicyRefused, match=name):
        ledger.set_run_budget("icu", run="r1", epsilon=budget[0], delta=budget[1])
    assert ledger.head().sequence == 1
    ledger.set_run_budget("icu", run="r1", epsilon=8.0, delta=1e-3)


def test_a_policy_that_is_tightened_holds_at_once_and_for_runs_that_have_begun(ledger, policy):
    ledger.set_run_budget("icu", run="r1", epsilon=8.0, delta=1e-3)
    ledger.reserve("icu", EVENT, run="r1")
    policy("max_delta = 1e-4")
    with pytest.raises(PolicyRefused, match=r"delta of at most 0\.0001, got 0\.001"):
        ledger.reserve("icu", EVENT, run="r1")


def test_a_policy_that_vanishes_while_in_use_allows_nothing(ledger, policy, tmp_path):
    path = policy("min_noise_multiplier = 1.0")
    ledger.reserve("icu", EVENT, run="r1")
    path.unlink()
    with pytest.raises(PolicyRefused, match="Put it back"):
        ledger.reserve("icu", EVENT, run="r1")
    policy("min_noise_multiplier = 1.0")
    ledger.reserve("icu", EVENT, run="r1")


@pytest.mark.parametrize(
    "text",
    [
        "max_epsilon = 4",
        "max_epsilon = 0\nmax_delta = 1e-5",
        "max_epsilon = nan\nmax_delta = 1e-5",
        "max_delta = 2",
        "max_delta = 'x'",
        "min_noise = 1.0",
        "samplers = 'poisson'",
        "min_noise_multiplier = -1",
        "[",
        "max_delta = 1e-5\nmax_delta = 1e-4",
    ],
)
def test_a_policy_that_is_none_stops_everything(ledger, policy, text):
    policy(text)
    with pytest.raises(PrivacyParameterError, match=r"max_delta|Expected a policy"):
        ledger.reserve("icu", EVENT, run="r1")
    with pytest.raises(PrivacyParameterError):
        ledger.set_run_budget("icu", run="r1", epsilon=1.0, delta=1e-5)
    assert ledger.head().sequence == 1


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_policy_that_others_can_write_is_refused(ledger, policy, mode):
    policy("min_noise_multiplier = 1.0").chmod(mode)
    with pytest.raises(PrivacyParameterError, match="chmod go-w"):
        ledger.reserve("icu", EVENT, run="r1")


def test_what_has_no_noise_that_could_be_compared_is_refused(ledger, policy):
    path = policy('samplers = ["none"]')
    with pytest.raises(UnsupportedEvent):
        ledger.reserve("icu", Unpriced("a plot"), run="r1")
    assert isinstance(LocalPolicy.load(path), LocalPolicy)
    policy("")
    ledger.reserve("icu", Unpriced("a plot"), run="r1")


@given(st.floats(0, 10), st.floats(0, 10), st.booleans(), st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_the_noise_of_an_event_is_found_at_any_depth(noise, least, sampled, count):
    event = Gaussian(noise)
    for wrapped in (event, Poisson(0.1, event), Repeated(Poisson(0.1, event), count), Repeated(event, count)):
        policy = LocalPolicy(min_noise_multiplier=least)
        if noise >= least:
            policy.verify(wrapped, where="x")
        else:
            with pytest.raises(PolicyRefused):
                policy.verify(wrapped, where="x")


@given(st.binary(max_size=120))
@settings(max_examples=150, deadline=None)
def test_bytes_of_any_kind_are_a_policy_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.policy.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    try:
        found = LocalPolicy.load(path)
    except PrivacyParameterError:
        return
    assert isinstance(found, LocalPolicy)


def test_a_policy_refusal_is_no_fault_of_the_ledger():
    assert not issubclass(PolicyRefused, LedgerError)
