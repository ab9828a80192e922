"""The configuration: what the template says is what runs, and every mistake is told with its remedy."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privopt import Group
from privopt.federation.parts import Parts, make_optimizer
from privopt.setup import config
from privopt.setup.config import (
    Config,
    ConfigError,
    MasksConfigError,
    PrivacyConfigError,
    check_plugins,
    from_json,
    load,
    to_json,
)
from privopt.setup.disclosed import disclosures


def test_the_template_loads_to_exactly_the_defaults(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(config.template())
    assert load(path) == Config() == load(None)


def test_the_template_shows_every_key_that_has_a_value(tmp_path):
    shown = tomllib.loads(config.template())
    everything = msgspec.to_builtins(Config())
    optional = {"bounds", "options"}

    def missing(default, given):
        for key, value in default.items():
            if key in optional or value is None:
                continue
            if key not in given:
                yield key
            elif isinstance(value, dict):
                yield from missing(value, given[key])

    assert list(missing(everything, shown)) == []


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('rounds = 7\n[dp]\nepsilon = 2\n[client]\noptimizer = {modules = ["adam"]}\n')
    read = load(path, ["dp.epsilon=4", "masks.enabled=false", "client.optimizer.lrate=.5"])
    assert (read.rounds, read.dp.epsilon, read.dp.delta) == (7, 4.0, Config().dp.delta)
    assert read.client.optimizer.modules == ("adam",)
    assert read.client.optimizer.lrate == 0.5
    assert not read.masks.enabled


def test_an_override_of_one_key_keeps_the_default_plug_ins():
    read = load(None, ["client.optimizer.lrate=1"])
    assert read.client.optimizer.modules == Config().client.optimizer.modules


def test_epochs_on_top_replace_the_default_steps():
    read = load(None, ["client.effort.epochs=2", "dp.sampler.rate=0.1"])
    assert read.client.effort == config.Effort(epochs=2.0)
    assert read.steps_per_round == 20


def test_seconds_on_top_replace_the_default_steps_where_dp_is_off():
    read = load(None, ["client.effort.seconds=2", "dp.enabled=false"])
    assert read.client.effort == config.Effort(seconds=2.0)


def test_a_metric_that_nobody_can_measure_is_no_reason_to_stop():
    own = ['data.clients=["a.csv", "b.csv"]', "masks.enabled=false", "server.stop.metric=loss"]
    with pytest.raises(ConfigError, match=r"data\.test"):
        load(None, own)
    assert load(None, [*own, "data.test=public.csv"]).server.stop.metric == "loss"
    disclosed = ["server.stop.metric=training_loss", 'dp.disclose=["loss"]']
    assert load(None, disclosed).server.stop.metric == "training_loss"


def test_a_list_of_files_means_data_of_ones_own():
    read = load(None, ['data.clients=["a.csv", "b.csv"]', "masks.enabled=false"])
    assert (read.data.name, read.num_clients) == ("own", 2)


def test_plug_ins_take_parameters():
    read = load(None, ['client.optimizer.modules=[["l2-global-clipping", {max_norm = 1.0}], "adam"]'])
    assert read.client.optimizer.modules == (("l2-global-clipping", {"max_norm": 1.0}), "adam")


def test_free_form_tables_grow_key_by_key():
    read = load(None, ["data.bounds.age=[0, 110]", "data.bounds.dose=[0, 5]"])
    assert read.data.bounds == {"age": (0.0, 110.0), "dose": (0.0, 5.0)}


@given(
    st.builds(
        Config,
        seed=st.integers(0, 2**40),
        rounds=st.integers(1, 10**6),
        twin=st.booleans(),
        model=st.builds(
            config.Model, name=st.text(max_size=9), options=st.dictionaries(st.text(), st.integers())
        ),
        dp=st.builds(
            config.Dp, enabled=st.booleans(), epsilon=st.floats(1e-3, 1e3), delta=st.floats(1e-12, 0.5)
        ),
        masks=st.builds(
            config.Masks, bits=st.integers(2, 28), bound=st.just("adaptive") | st.floats(1e-3, 1e3)
        ),
        server=st.builds(
            config.Server,
            weighting=st.sampled_from(["uniform", "samples", "steps"]),
            aggregator=st.sampled_from(["mean", "sum", ("fednova", {"momentum": 0.9})]),
            selection=st.builds(
                config.Selection,
                how=st.sampled_from(["uniform", "weighted", "round-robin"]),
                clients=st.integers(5, 8),
            ),
            stop=st.builds(
                config.Stop,
                metric=st.sampled_from([None, "accuracy", "loss"]),
                patience=st.integers(1, 99),
                min_change=st.floats(0, 1),
            ),
        ),
    )
)
def test_json_round_trip_keeps_every_value(example):
    assert config.from_json(config.to_json(example)) == example


@pytest.mark.parametrize(
    ("override", "error", "says"),
    [
        ("epsilon=4", ConfigError, "Did you mean dp.epsilon"),
        ("dp.epsilonn=4", ConfigError, "'dp.epsilonn' on the command line. Did you mean dp.epsilon"),
        ("modle.name=mlp", ConfigError, "Did you mean model"),
        ("rounds=x", ConfigError, "a whole number for rounds, got 'x' on the command line"),
        ("rounds=1.5", ConfigError, "a whole number for rounds, got 1.5"),
        ("rounds=0", ConfigError, "rounds = 0"),
        ("dp=3", ConfigError, "a table for dp"),
        ("dp.enabled=1", ConfigError, "true or false for dp.enabled, got 1"),
        ("data.name=foo", ConfigError, '"digits" or "breast_cancer"'),
        ("data.name=mnist", ConfigError, "data.path"),
        ("data.name=own", ConfigError, "a file per client"),
        ("client.optimizer.modules=adam", ConfigError, r'\["adam"\]'),
        ("client.optimizer.modules=[adam]", ConfigError, "keep their quotes"),
        ("client.effort={steps=3, epochs=2}", ConfigError, "one of steps, epochs and seconds"),
        ("client.effort.epochs=-1", ConfigError, r"some work a round, got client\.effort = -1"),
        (
            "client.effort.seconds=2",
            PrivacyConfigError,
            r"known before a round with dp on, got .*seconds = 2",
        ),
        ("server.selection.how=some", ConfigError, '"uniform" or "weighted" or "round-robin" for'),
        ("server.selection.clients=5", ConfigError, r'where how = "all", got server\.selection\.clients = 5'),
        ("server.selection.how=uniform", ConfigError, "number of clients of at most 8, got .* = none"),
        ("server.selection={how='uniform', clients=9}", ConfigError, "of at most 8, got .* = 9"),
        (
            "server.selection={how='uniform', clients=4}",
            ConfigError,
            r"at least 5 clients a round, got .* = 4",
        ),
        ("server.stop.patience=0", ConfigError, r"server\.stop\.patience = 0"),
        ("server.stop.min_change=-1", ConfigError, r"server\.stop\.min_change = -1"),
        ("server.stop.metric=training_loss", ConfigError, r"a public metric, got .*dp\.disclose"),
        ("server.stop.metric=f1", ConfigError, '"accuracy" or "loss" or "training_loss"'),
        ("client.home=keys", ConfigError, "homes/{id}"),
        ("client.optimizer.lrate=-1", ConfigError, "client.optimizer.lrate = -1"),
        ("foo", ConfigError, "key=value, got 'foo'"),
        ("dp.epsilon=0", PrivacyConfigError, "dp.epsilon = 0"),
        ("dp.epsilon=-1", PrivacyConfigError, "dp.epsilon = -1"),
        ("dp.epsilon=nan", PrivacyConfigError, "dp.epsilon = nan"),
        ("dp.delta=1", PrivacyConfigError, "dp.delta = 1"),
        ("dp.clip_norm=0", PrivacyConfigError, "dp.clip_norm = 0"),
        ("dp.sampler.rate=2", PrivacyConfigError, "dp.sampler.rate = 2"),
        ("data.clients=1", MasksConfigError, "data.clients = 1"),
        ("data.clients=2", MasksConfigError, "data.clients = 2"),
        ("data.clients=3", MasksConfigError, "masks.allow_three=true"),
        ("data.clients=4", MasksConfigError, "masks.min_clients=4"),
        ("masks.min_clients=9", MasksConfigError, "data.clients = 8"),
        ("masks.bits=40", MasksConfigError, "masks.bits = 40"),
        ("masks.bound=x", ConfigError, 'a number or "adaptive"'),
    ],
)
def test_mistakes_are_named_with_key_value_and_remedy(override, error, says):
    with pytest.raises(error, match=says) as caught:
        load(None, [override])
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_three_clients_are_accepted_with_consent_and_two_never():
    consent = ["masks.min_clients=3", "masks.allow_three=true"]
    assert load(None, ["data.clients=3", *consent]).num_clients == 3
    with pytest.raises(MasksConfigError, match=r"data\.clients = 2"):
        load(None, ["data.clients=2", *consent])


def test_a_file_is_named_in_the_error_about_its_key(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text("[dp]\nepsilonn = 3\n")
    with pytest.raises(ConfigError, match=r"'dp\.epsilonn' in .*my\.toml"):
        load(path)
    path.write_text("rounds = [\n")
    with pytest.raises(ConfigError, match="syntax error"):
        load(path)
    with pytest.raises(ConfigError, match="privopt init"):
        load(tmp_path / "absent.toml")


def test_an_edited_config_json_is_refused():
    with pytest.raises(ConfigError, match=r"config\.json"):
        config.from_json('{"rounds": "many"}')
    with pytest.raises(ConfigError, match="rounds = 0"):
        config.from_json('{"rounds": 0}')


# --- plug-ins, aggregators --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"name": "mean", "weight": "uniform"}),
        (["server.weighting=samples"], {"name": "mean", "weight": "samples"}),
        (["server.aggregator=fednova"], {"name": "fednova", "weight": "uniform", "momentum": 0.0}),
        (
            ['server.aggregator=["masked-mean", {threshold = 0.6}]', "server.weighting=steps"],
            {"name": "masked-mean", "weight": "steps", "threshold": 0.6},
        ),
        (['server.aggregator=["mean", {weight = "samples"}]'], {"name": "mean", "weight": "samples"}),
    ],
)
def test_an_aggregator_takes_its_weight_from_weighting_unless_it_says_one(overrides, expected):
    read = load(None, overrides)
    config.check_plugins(read)
    found = config.chosen_aggregator(read.server)
    assert {"name": found.name, **found.get_config()} == expected


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["server.aggregator=men"], "a known aggregator, got 'men'. Did you mean 'mean'"),
        (['server.aggregator=["mean", {weight = "samples"}]', "server.weighting=steps"], "Take out one"),
        (['server.aggregator=["fednova", {rho = 1}]'], "got 'rho'"),
        (
            ["client.effort.seconds=1", "dp.enabled=false", "server.weighting=steps"],
            "weights that are known before a round",
        ),
        (["server.optimizer.modules=[]"], "counterpart on the server"),
        (
            ['client.optimizer={modules = [], regularizers = ["feddyn"]}', "server.optimizer.modules=[]"],
            "'feddyn-server'",
        ),
    ],
)
def test_halves_and_aggregators_that_do_not_fit_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        config.check_plugins(load(None, overrides))


def test_a_config_of_before_aggregators_is_the_plain_mean():
    old = msgspec.json.decode(config.to_json(Config()))
    for key in ("aggregator", "selection", "stop"):
        del old["server"][key]
    del old["client"]["effort"]["seconds"]
    assert config.from_json(msgspec.json.encode(old)) == Config()


def test_noise_on_counts_is_disclosed_as_having_no_price():
    chain = 'client.optimizer.modules=[["adaptive-clipping-client", {count_noise = %s}]]'
    told = [disclosures(load(None, [chain % noise])) for noise in ("0.0", "2.0")]
    assert told[0] == ["sample counts (declared public)"]
    assert told[1][0] == told[0][0]
    assert told[1][1].startswith("adaptive-clipping-client: adaptive-clipping-client in the chain")


def test_what_is_explained_of_a_weighted_round_is_what_is_sent():
    chosen = load(None, ["server.weighting=samples", "dp.enabled=false"])
    parts = Parts(chosen)
    assert parts.schema()["scaffold.first"].at_most == 2**40
    assert parts.schema()["weight"].at_most == parts.most_weight


def test_optimizers_take_schedules_and_groups_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(
        """
        [client.optimizer]
        lrate = ["warmup", {duration = 3, then = ["cosine", {base = 2.0, duration = 30}]}]
        groups = [{match = ".*bias", lrate_scale = 0.5, w_decay = 0.0}]
        """
    )
    config = load(path)
    check_plugins(config)
    optimizer = make_optimizer(from_json(to_json(config)).client.optimizer)
    assert optimizer.current_lrate == 0.5
    assert optimizer.groups == (Group(".*bias", lrate_scale=0.5, w_decay=0.0),)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("client.optimizer.lrate=cosin", "a known schedule, got 'cosin'. Did you mean 'cosine'"),
        ('client.optimizer.lrate=["cosine",{bas=1.0}]', "got 'bas'"),
        ("client.optimizer.groups=[{rate=1.0}]", "a group's keys among"),
        ('client.optimizer.groups=[{match="bias",lrate=-1.0}]', "lrate >= 0"),
        (
            'client.optimizer.groups=[{match="bios"}]',
            "client.optimizer.groups: Expected group 'bios' to match",
        ),
    ],
)
def test_wrong_schedules_and_groups_are_refused_before_anything_is_made(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        Parts(load(None, [override]))
