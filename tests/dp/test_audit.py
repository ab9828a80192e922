"""The audit: an honest export passes, every forgery is found and named, garbage is answered calmly."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.audit import LedgerAudit, Problem, audit_ledger, check_export
from dp.events import Gaussian, Neighboring, Poisson, Repeated, Unpriced
from dp.ledger import Ledger, LedgerKey
from dp.records import Export, Record, hash_body

STEP = Poisson(0.2, Gaussian(1.5))
EVENT = Repeated(STEP, 5)
DELTA = 1e-3


def recorded(reservation, **changes):
    return {
        "event": reservation.event.to_dict(),
        "steps": 5,
        "sampler": "poisson",
        "sample_rate": 0.2,
        "clip_norm": 0.5,
        "noise_multiplier": 1.5,
        "ledger_sequence": reservation.sequence,
    } | changes


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """An export of ten records: create, budget, three committed, one void; and what the run recorded."""
    folder = tmp_path_factory.mktemp("honest")
    key = LedgerKey.generate()
    with Ledger.open(folder / "l", key) as ledger:
        ledger.set_run_budget("icu", run="r1", epsilon=8.0, delta=DELTA)
        releases = []
        for _ in range(3):
            releases.append(ledger.reserve("icu", EVENT, run="r1"))
            ledger.commit(releases[-1])
        ledger.void(ledger.reserve("icu", EVENT, run="r1"))
        ledger.export(folder / "e.json")
        spent = ledger.spent("icu", DELTA, run="r1").value
    return folder / "e.json", key, [recorded(r) for r in releases], spent


@pytest.fixture
def export(honest):
    return json.loads(honest[0].read_text())


@pytest.fixture
def audit(honest):
    def run(export, *, public_key=honest[1].public_key, **changes):
        known = {"client": "c0", "run": "r1", "delta": DELTA, "recorded": honest[2]}
        return audit_ledger(export, public_key=public_key, **(known | changes))

    return run


def rehash(export, number):
    """Make record `number` (and it alone) fit its own hash again."""
    stored = export["records"][number - 1]
    body = {k: v for k, v in stored.items() if k != "hash"}
    stored["hash"] = hash_body(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def rechain(export, start):
    """Make every hash from record `start` on fit."""
    for number in range(start, len(export["records"]) + 1):
        if number > 1:
            export["records"][number - 1]["previous"] = export["records"][number - 2]["hash"]
        rehash(export, number)


# ---- honest -----------------------------------------------------------------------------------------------


def test_an_honest_ledger_passes_and_the_accountants_agree(honest, audit):
    found = audit(honest[0])
    assert found.ok
    assert (found.client, found.events, found.delta) == ("c0", 15, DELTA)
    assert (found.chain, found.signature, found.matches, found.problems) == (True, True, True, [])
    assert found.epsilon["PLD"] == honest[3]
    assert abs(found.epsilon["PRV"] - found.epsilon["PLD"]) <= 0.01 * found.epsilon["PLD"] + 0.011
    assert found.epsilon["PLD"] <= found.epsilon["RDP"]


def test_an_export_is_read_from_its_file_and_from_its_json_alike(honest, export, audit):
    assert audit(export) == audit(honest[0])
    assert Export is type(check_export(honest[0]).export)


def test_the_layout_of_the_json_does_not_matter(honest, export, audit, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(export, indent=3, sort_keys=True))
    assert audit(tmp_path / "e.json") == audit(honest[0])


def test_without_a_pinned_key_the_export_is_checked_against_its_own_and_that_is_noted(honest, audit):
    found = audit(honest[0], public_key=None)
    assert found.ok
    assert any("No key was pinned" in note for note in found.notes)


def test_a_reservation_that_was_never_committed_is_counted_and_noted(tmp_path, audit):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        first = ledger.reserve("icu", EVENT, run="r1")
        ledger.commit(first)
        ledger.reserve("icu", EVENT, run="r1")
        ledger.export(tmp_path / "e.json")
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=[recorded(first)])
    assert found.ok
    assert found.events == 10
    assert any("Record 4" in note and "never committed" in note for note in found.notes)


def test_a_ledger_without_a_word_of_the_run_says_so(honest, audit):
    found = audit(honest[0], run="r2", recorded=[])
    assert found.ok
    assert found.events == 0
    assert found.epsilon["PLD"] == 0.0
    assert any("nothing of run 'r2'" in note for note in found.notes)


def test_releases_without_a_sampler_and_under_another_relation_are_compared_and_priced(tmp_path, audit):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        release = ledger.reserve("icu", Gaussian(4.0), run="r1", neighboring=Neighboring.REPLACE_ONE)
        ledger.commit(release)
        ledger.export(tmp_path / "e.json")
        spent = ledger.spent("icu", DELTA).value
    plain = {"steps": 1, "sampler": "all", "sample_rate": 1.0, "noise_multiplier": 4.0}
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=[recorded(release, **plain)])
    assert found.ok, found.problems
    assert found.epsilon["PLD"] == spent


def test_a_run_without_noise_costs_infinity(tmp_path, audit):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        ledger.reserve("icu", Gaussian(0.0), run="r1")
        ledger.export(tmp_path / "e.json")
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=[])
    assert found.epsilon == {"PLD": float("inf"), "RDP": float("inf"), "PRV": float("inf")}


@pytest.mark.parametrize("told", [True, False])
def test_a_release_without_a_price_is_a_problem_and_no_crash(tmp_path, audit, told):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        release = ledger.reserve("icu", Unpriced("added by a module"), run="r1")
        ledger.commit(release)
        ledger.export(tmp_path / "e.json")
    releases = [recorded(release, steps=1)] if told else []
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=releases)
    assert not found.ok
    assert found.events == 1
    assert found.epsilon == {}
    assert any("cannot be priced by PLD" in problem.what for problem in found.problems)


@pytest.mark.parametrize("written", [0.5, 0.7, None])
def test_the_clip_norm_of_the_ledger_is_the_recorded_one(tmp_path, audit, written):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        release = ledger.reserve("icu", EVENT, run="r1", clip_norm=written)
        ledger.commit(release)
        ledger.export(tmp_path / "e.json")
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=[recorded(release)])
    assert found.ok == (written != 0.7)
    assert any("clip norm is not in the ledger" in note for note in found.notes) == (written is None)
    if not found.ok:
        assert str(found.problems[0]) == "record 2: was clipped to 0.7, the run recorded 0.5"


def test_a_clip_norm_in_a_record_that_has_none_is_named(export, audit):
    export["records"][3]["clip_norm"] = 0.5  # a commit
    rehash(export, 4)
    assert audit(export).problems[0].record == 4


def test_where_prv_gives_no_price_that_is_noted_and_no_problem(tmp_path, audit):
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        release = ledger.reserve("icu", EVENT, run="r1")
        ledger.commit(release)
        ledger.export(tmp_path / "e.json")
    releases = [recorded(release)]
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=releases, delta=1 - 1e-6)
    assert found.ok
    assert set(found.epsilon) == {"PLD", "RDP"}
    assert any("PRV gives no price here" in note for note in found.notes)


def test_a_void_reservation_is_told(honest, audit):
    found = audit(honest[0])
    assert found.ok
    assert any("Record 9" in note and "made void" in note for note in found.notes), found.notes
    # What another run made void is not this run's.
    assert not any("void" in note for note in audit(honest[0], run="r2", recorded=[]).notes)


def test_a_run_told_to_be_priced_at_another_delta_than_its_signed_budget_is_named(honest, audit):
    found = audit(honest[0], delta=10 * DELTA)
    assert [problem.record for problem in found.problems] == [2]
    assert "δ = 0.001" in found.problems[0].what


def test_a_run_beyond_its_signed_budget_is_named(tmp_path, audit):
    # A holder's own code could reserve past the filter; the budget came after the releases here.
    with Ledger.open(tmp_path / "l", key := LedgerKey.generate()) as ledger:
        release = ledger.reserve("icu", EVENT, run="r1")
        ledger.commit(release)
        ledger.set_run_budget("icu", run="r1", epsilon=0.1, delta=DELTA)
        ledger.export(tmp_path / "e.json")
    found = audit(tmp_path / "e.json", public_key=key.public_key, recorded=[recorded(release)])
    assert [problem.record for problem in found.problems] == [4]
    assert "allows the run ε = 0.1" in found.problems[0].what


# ---- forged: the first bad record is named -----------------------------------------------------------------


def bad(found, record):
    """The audit failed, named `record` first, and priced nothing."""
    assert not found.ok
    assert not (found.chain and found.signature)
    assert not found.matches
    assert found.epsilon == {}
    assert found.problems[0].record == record, found.problems


@pytest.mark.parametrize("number", range(1, 11))
def test_an_altered_record_is_named(export, audit, number):
    export["records"][number - 1]["time"] = "1970"
    bad(audit(export), number)


@pytest.mark.parametrize("number", range(1, 11))
def test_an_altered_record_with_its_hash_made_to_fit_is_named(export, audit, number):
    export["records"][number - 1]["time"] = "1970"
    rehash(export, number)
    bad(audit(export), number)


def test_more_noise_than_was_drawn_is_found_though_the_whole_chain_was_made_to_fit(export, audit):
    export["records"][2]["event"]["event"]["event"]["noise_multiplier"] = 15.0
    rechain(export, 3)
    found = audit(export)
    assert not found.ok
    # The chain is whole in itself; that it is not the signed one shows at its head.
    assert {problem.record for problem in found.problems} == {3, 10}
    export["head"]["hash"] = export["records"][-1]["hash"]
    assert 10 in {problem.record for problem in audit(export).problems}


@pytest.mark.parametrize("left", range(10))
def test_an_end_that_was_cut_off_is_named(export, audit, left):
    del export["records"][left:]
    bad(audit(export), left + 1)


def test_an_end_cut_off_together_with_the_head_does_not_fit_the_signature(export, audit):
    del export["records"][8:]
    export["head"] |= {"sequence": 8, "hash": export["records"][-1]["hash"]}
    found = audit(export)
    assert not found.signature
    assert found.problems[0].record == 8


@pytest.mark.parametrize("number", range(1, 10))
def test_two_records_in_another_order_are_named(export, audit, number):
    records = export["records"]
    records[number - 1], records[number] = records[number], records[number - 1]
    bad(audit(export), number)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_record_left_out_is_named(export, audit, number):
    del export["records"][number - 1]
    bad(audit(export), number)


@pytest.mark.parametrize("number", range(2, 11))
def test_an_inserted_record_is_named(export, audit, number):
    export["records"].insert(number - 1, copy.deepcopy(export["records"][2]))
    bad(audit(export), number if number != 3 else 4)


@pytest.mark.parametrize("number", range(3, 10))
def test_a_record_inserted_and_numbered_to_fit_is_named(export, audit, number):
    export["records"].insert(number - 1, copy.deepcopy(export["records"][2]))
    for place in range(number, len(export["records"]) + 1):
        export["records"][place - 1]["sequence"] = place
    rechain(export, number)
    assert not audit(export).chain
    assert not audit(export).ok


def test_a_swapped_signature_is_named(export, audit):
    export["head"]["signature"] = LedgerKey.generate().sign_head(10, bytes(32)).hex()
    found = audit(export)
    assert (found.chain, found.signature) == (True, False)
    assert found.problems[0].record == 10


def test_a_signature_of_an_older_head_does_not_fit(honest, export, audit):
    older = export["records"][7]["hash"]
    export["head"]["signature"] = honest[1].sign_head(8, bytes.fromhex(older)).hex()
    assert not audit(export).signature


def test_a_whole_ledger_signed_by_another_key_is_named(export, audit):
    other = LedgerKey.generate()
    export["public_key"] = export["records"][0]["public_key"] = other.public_key.hex()
    rechain(export, 1)
    head = export["records"][-1]["hash"]
    export["head"] |= {"hash": head, "signature": other.sign_head(10, bytes.fromhex(head)).hex()}
    assert check_export(export).ok  # whole in itself: only the pin tells
    found = audit(export)
    assert not found.signature
    assert {problem.record for problem in found.problems} == {1, 10}


def test_a_swapped_public_key_is_named(export, audit):
    export["public_key"] = LedgerKey.generate().public_key.hex()
    found = audit(export)
    assert not found.signature
    assert found.problems[0].record == 10
    assert not audit(export, public_key=None).signature


@pytest.mark.parametrize("key", [b"", b"short", bytes(32), b"\xff" * 32])
def test_a_pinned_key_that_is_none_accepts_nothing(export, audit, key):
    assert not audit(export, public_key=key).signature


def resigned(export, key, start):
    """The export as the holder of the key would have made it."""
    rechain(export, start)
    head = export["records"][-1]
    signature = key.sign_head(head["sequence"], bytes.fromhex(head["hash"])).hex()
    export["head"] = {"sequence": head["sequence"], "hash": head["hash"], "signature": signature}
    return export


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (4, {"reservation": 9}),  # commits what is reserved later
        (4, {"reservation": 2}),  # commits a budget
        (6, {"reservation": 3}),  # commits twice
        (6, {"kind": "void"}),  # says nothing was drawn, though the run recorded it
        (4, {"run": "r2"}),  # commits under another run
        (2, {"kind": "budget"}),  # of another form
        (5, {"neighboring": "replace-one"}),  # another relation than before
        (5, {"event": {"kind": "gaussian"}}),  # no event
        (5, {"event": {"kind": []}}),
        (5, {"event": {"kind": "gaussian", "noise_multiplier": 10**400}}),
        (5, {"epsilon": 1.0}),  # a field too many
        (5, {"kind": "create"}),
    ],
)
def test_a_holder_who_signs_nonsense_is_found_too(honest, export, audit, number, changes):
    export["records"][number - 1] |= changes
    found = audit(resigned(export, honest[1], number))
    assert not found.ok
    assert found.problems[0].record == (number if changes != {"kind": "void"} else 5)


def test_a_holder_who_leaves_out_a_release_is_found_by_what_the_run_recorded(honest, export, audit):
    del export["records"][6:]
    found = audit(resigned(export, honest[1], 7))
    assert (found.chain, found.signature, found.matches) == (True, True, False)
    assert found.problems == [Problem(7, "is recorded by the run, and is no reservation in the ledger")]


# ---- the run's record --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"steps": 4}, "5 releases, the run recorded 4"),
        ({"sampler": "shuffled"}, "'shuffled'"),
        ({"sample_rate": 0.1}, "sample rate 0.2, the run recorded 0.1"),
        ({"noise_multiplier": 1.6}, "noise multiplier 1.5, the run recorded 1.6"),
        ({"clip_norm": float("inf")}, "bounds nothing"),
        ({"clip_norm": 0.0}, "bounds nothing"),
        ({"event": Repeated(STEP, 6).to_dict()}, "the run recorded 6"),
        ({"ledger_sequence": 9}, "was made void"),
        ({"ledger_sequence": 4}, "is no reservation"),
        ({"ledger_sequence": 99}, "is no reservation"),
        ({"ledger_sequence": 5}, "twice"),
    ],
)
def test_what_the_run_recorded_otherwise_is_named(honest, audit, changes, what):
    found = audit(honest[0], recorded=[honest[2][0] | changes, *honest[2][1:]])
    assert (found.chain, found.signature, found.matches) == (True, True, False)
    assert any(what in str(problem) for problem in found.problems), found.problems
    assert found.epsilon["PLD"] == honest[3]


def test_a_committed_release_that_the_run_did_not_record_is_named(honest, audit):
    found = audit(honest[0], recorded=honest[2][1:])
    assert [problem.record for problem in found.problems] == [3]
    assert not found.matches


def test_a_release_of_another_run_is_named(honest, audit):
    found = audit(honest[0], run="r2")
    assert [problem.record for problem in found.problems] == [3, 5, 7]
    assert "is of run 'r1'" in found.problems[0].what


@pytest.mark.parametrize("value", [None, [], {}, {"event": 1}, 7, "x"])
def test_a_run_record_that_is_none_is_a_problem(honest, audit, value):
    found = audit(honest[0], recorded=[value, *honest[2]])
    assert [problem.record for problem in found.problems] == [None]
    assert "release 1 of the run's own record" in str(found.problems[0])


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_a_delta_that_promises_nothing_is_a_problem(honest, audit, delta):
    found = audit(honest[0], delta=delta)
    assert not found.ok
    assert found.epsilon == {}


# ---- garbage ----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def calm(found):
    assert isinstance(found, LedgerAudit)
    assert not found.ok
    assert all(str(problem) for problem in found.problems)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_bytes_of_any_kind_are_answered(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "garbage.json"
    path.write_bytes(data)
    calm(audit_ledger(path, client="c", public_key=None, run="r", delta=1e-5, recorded=[]))


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=5), st.lists(JSON, max_size=3))
@settings(max_examples=300)
def test_json_of_any_kind_is_answered(value, run_record):
    calm(audit_ledger(value, client="c", public_key=bytes(32), run="r", delta=1e-5, recorded=run_record))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_an_export_with_any_value_replaced_is_answered_and_never_passes(honest, data):
    export = json.loads(honest[0].read_text())
    place, key = export, None
    while isinstance(place, dict | list) and place and (key is None or data.draw(st.integers(0, 3)) > 0):
        outer = place
        key = data.draw(st.sampled_from(list(range(len(place)) if isinstance(place, list) else place)))
        place = place[key]
    new = data.draw(JSON.filter(lambda value: type(value) is not type(place) or value != place))
    outer[key] = new
    found = audit_ledger(
        export, client="c", public_key=honest[1].public_key, run="r1", delta=DELTA, recorded=honest[2]
    )
    assert isinstance(found, LedgerAudit)
    # One number may stand for another as JSON has it (1 and 1.0), and format 1, a part of format 2, for 2;
    # nothing else may be changed unseen.
    alike = type(place) in (int, float) and new == place and type(new) is not bool
    assert not found.ok or alike or (outer is export and key == "format" and new == 1)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_anywhere_never_passes(honest, tmp_path_factory, data):
    raw = bytearray(honest[0].read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.sampled_from([1 << bit for bit in range(8)]))
    path = tmp_path_factory.getbasetemp() / "flipped.json"
    path.write_bytes(bytes(raw))
    found = audit_ledger(
        path, client="c", public_key=honest[1].public_key, run="r1", delta=DELTA, recorded=honest[2]
    )
    # White space between values says nothing; a flip may turn one kind of it into another.
    assert not found.ok or json.loads(raw) == json.loads(honest[0].read_text())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format":1,"public_key":"' + b"0" * 64 + b'","records":' + b"[" * 50_000,
        b"\xff\xfe",
        b'{"format":NaN}',
        b'{"format":1e999}',
        b'"\\ud800"',
    ],
)
def test_hostile_json_is_answered(tmp_path, data):
    (tmp_path / "e").write_bytes(data)
    calm(audit_ledger(tmp_path / "e", client="c", public_key=None, run="r", delta=1e-5, recorded=[]))


def test_a_mapping_that_is_no_json_is_answered():
    nested = {}
    nested["self"] = nested
    for value in (nested, {1: object()}, {"x": b"bytes"}, {"x": float("nan")}, {"records": "\ud800"}):
        calm(audit_ledger(value, client="c", public_key=None, run="r", delta=1e-5, recorded=[]))


def test_a_file_that_is_missing_is_answered(tmp_path):
    found = audit_ledger(
        tmp_path / "none.json", client="c", public_key=None, run="r", delta=1e-5, recorded=[]
    )
    calm(found)
    assert "cannot be read" in str(found.problems[0])
    calm(audit_ledger(tmp_path, client="c", public_key=None, run="r", delta=1e-5, recorded=[]))


def test_a_record_without_its_hash_is_what_the_ledger_hashed(export):
    for stored in export["records"]:
        own_hash = stored.pop("hash")
        body = json.dumps(stored, sort_keys=True, separators=(",", ":")).encode()
        assert Record.from_bytes(body).to_bytes() == body
        assert hash_body(body) == own_hash
