"""Heads that peers keep: an older copy, a cut end and a swapped file are found, and the record is named."""

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.audit import check_export
from dp.errors import LedgerError
from dp.events import Gaussian, Poisson, Repeated
from dp.heads import CountersignedHead, HeadKeeper, SignedHead, countersign, read_heads, sign_head
from dp.ledger import Ledger, LedgerKey
from dp.signing import HEAD, PEER
from tests.dp.ledger_children import finish, start

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)
KEY, PEER_KEY = LedgerKey.generate(), LedgerKey.generate()


@pytest.fixture
def home(tmp_path):
    """A folder with a ledger of four releases (nine records), a copy of it after each, and kept heads."""
    keeper = HeadKeeper(tmp_path / "heads", PEER_KEY)
    for number in range(4):
        with Ledger.open(tmp_path / "l", KEY) as ledger:
            ledger.commit(ledger.reserve("icu", EVENT, run="r1"))
            keeper.keep(ledger.head())
        shutil.copy(tmp_path / "l", tmp_path / f"copy-{number}")
    return tmp_path


def verified(path, heads, **options):
    with Ledger.open(path, KEY) as ledger:
        ledger.verify(heads, **options)


def refused(path, heads, **options):
    with pytest.raises(LedgerError) as caught:
        verified(path, heads, **options)
    return caught.value


def exported(path, target):
    with Ledger.open(path, KEY) as ledger:
        ledger.export(target)
    return target


# ---- what is found ----------------------------------------------------------------------------------------


def test_an_honest_ledger_holds_every_head_that_was_kept(home):
    heads = read_heads(home / "heads")
    assert [kept.head.sequence for kept in heads] == [3, 5, 7, 9]
    verified(home / "l", heads, peers=[PEER_KEY.public_key])
    with Ledger.open(home / "l", KEY) as ledger:
        ledger.reserve("icu", EVENT, run="r2")  # the ledger may be ahead of its newest head
    verified(home / "l", heads)
    checked = check_export(exported(home / "l", home / "e"), heads=heads, peers=[PEER_KEY.public_key])
    assert (checked.ok, checked.held) == (True, 4)
    assert any("up to 9" in note for note in checked.notes)


@pytest.mark.parametrize("number", range(3))
def test_an_older_copy_passes_by_itself_and_is_found_by_the_heads(home, number):
    copy = home / f"copy-{number}"
    verified(copy, [])
    assert check_export(exported(copy, home / "e")).ok
    heads = read_heads(home / "heads")
    first = 2 * number + 4
    error = refused(copy, heads)
    assert error.record == first
    assert f"Record {first} is missing: a peer kept the head of record" in str(error)
    checked = check_export(exported(copy, home / "e"), heads=heads)
    assert (checked.chain, checked.signature, checked.ok) == (True, True, False)
    assert checked.problems[0].record == first
    assert checked.held == number + 1


@pytest.mark.parametrize(("length", "first"), [(1, 7), (2, 6), (3, 6), (6, 6)])
def test_an_older_copy_that_was_signed_on_from_is_found(home, length, first):
    # A copy of five records goes on with other releases: the same chain up to record 5.
    with Ledger.open(home / "copy-1", KEY) as ledger:
        for number in range(length):
            ledger.reserve("icu", EVENT, run=f"other-{number}")
    verified(home / "copy-1", [])
    error = refused(home / "copy-1", read_heads(home / "heads"))
    # The peer kept heads of records 5 and 7. What it never saw, such as another record 6, it cannot tell.
    assert error.record == first
    assert "nobody vouches for those after 5" in str(error) if length == 1 else "up to 7" in str(error)
    checked = check_export(exported(home / "copy-1", home / "e"), heads=read_heads(home / "heads"))
    assert checked.problems[0].record == first


def test_a_fresh_file_of_the_same_key_is_found(home):
    with Ledger.open(home / "fresh", KEY) as ledger:
        for _ in range(6):
            ledger.reserve("icu", EVENT, run="r1")
    error = refused(home / "fresh", read_heads(home / "heads"))
    assert error.record == 1
    assert "another ledger" in str(error)


def test_heads_of_others_say_nothing_and_that_is_told(home, tmp_path):
    with Ledger.open(tmp_path / "other", LedgerKey.generate()) as other:
        head = countersign(other.head(), PEER_KEY)
    assert "got 1 of others" in str(refused(home / "l", [head]))
    verified(home / "l", [head, *read_heads(home / "heads")])
    checked = check_export(exported(home / "l", home / "e"), heads=[head])
    assert (checked.ok, checked.held) == (True, 0)
    assert any("No kept head is about this ledger" in note for note in checked.notes)


def test_a_peer_that_is_not_trusted_vouches_for_nothing(home):
    heads = read_heads(home / "heads")
    error = refused(home / "l", heads, peers=[LedgerKey.generate().public_key])
    assert "trusted peer" in str(error)
    notes = check_export(exported(home / "l", home / "e"), heads=heads).notes
    assert any("No peer's key was pinned" in note for note in notes)


def test_two_heads_of_one_number_convict_the_holder_whichever_file_it_shows(home):
    # Somebody who signs two stories of record 6 cannot show one file that fits both.
    heads = []
    for name in ("l", "copy-1"):
        shutil.copy(home / "copy-1", home / f"story-{name}")
        with Ledger.open(home / f"story-{name}", KEY) as ledger:
            ledger.reserve("icu", EVENT, run=f"told-{name}")
            heads.append(countersign(ledger.head(), PEER_KEY))
    for name in ("l", "copy-1"):
        error = refused(home / f"story-{name}", heads)
        assert error.record == 6
        assert "two stories" in str(error)


# ---- statements -------------------------------------------------------------------------------------------


def test_a_statement_fits_no_other_domain_and_no_record():
    head = sign_head(KEY, "ab" * 16, 3, "cd" * 32)
    assert head.is_signed()
    body = head._body()
    for domain in (HEAD, PEER):
        with pytest.raises(ValueError, match="domain"):
            KEY.sign_statement(domain + b"x", body)
    assert KEY.sign_statement(PEER, body) != KEY.sign_statement(HEAD, body)
    assert not SignedHead(
        **{name: getattr(head, name) for name in head.__struct_fields__ if name != "signature"},
        signature=KEY.sign_statement(PEER, body).hex(),
    ).is_signed()
    assert KEY.sign_head(3, bytes.fromhex("cd" * 32)).hex() != head.signature


def test_a_head_of_another_key_is_not_countersigned():
    head = sign_head(KEY, "ab" * 16, 3, "cd" * 32)
    forged = SignedHead.from_bytes(
        head.to_bytes().replace(KEY.public_key.hex().encode(), PEER_KEY.public_key.hex().encode())
    )
    with pytest.raises(LedgerError, match="another signature"):
        countersign(forged, PEER_KEY)


hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(hashes, st.integers(1, 2**53), hashes)
@settings(max_examples=60, deadline=None)
def test_heads_survive_their_bytes(ledger, sequence, own_hash):
    head = sign_head(KEY, ledger[:32], sequence, own_hash)
    assert SignedHead.from_bytes(head.to_bytes()) == head
    kept = countersign(head, PEER_KEY)
    assert CountersignedHead.from_bytes(kept.to_bytes()) == kept
    assert kept.is_signed()
    assert json.loads(kept.to_bytes())["head"]["sequence"] == sequence


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_head_with_a_flipped_bit_is_refused_or_not_signed(data):
    kept = countersign(sign_head(KEY, "ab" * 16, 3, "cd" * 32), PEER_KEY)
    raw = bytearray(kept.to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = CountersignedHead.from_bytes(bytes(raw))
    except LedgerError:
        return
    assert not found.is_signed()


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_head_are_refused(body):
    for kind in (SignedHead, CountersignedHead):
        with pytest.raises(LedgerError):
            kind.from_bytes(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_head_with_any_value_replaced_is_refused_or_not_signed(data):
    kept = json.loads(countersign(sign_head(KEY, "ab" * 16, 3, "cd" * 32), PEER_KEY).to_bytes())
    place = data.draw(st.sampled_from([kept, kept["head"]]))
    key = data.draw(st.sampled_from(sorted(place)))
    new = data.draw(JSON.filter(lambda value: type(value) is not type(place[key]) or value != place[key]))
    place[key] = new
    body = json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
    try:
        found = CountersignedHead.from_bytes(body)
    except LedgerError:
        return
    assert not found.is_signed()


@pytest.fixture(scope="module")
def exported_with_heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    with Ledger.open(folder / "l", KEY) as ledger:
        first = countersign(ledger.head(), PEER_KEY)
        ledger.commit(ledger.reserve("icu", EVENT, run="r1"))
        ledger.export(folder / "e.json")
        return json.loads((folder / "e.json").read_text()), [first, countersign(ledger.head(), PEER_KEY)]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_an_export_with_any_value_replaced_is_answered_with_heads_and_never_passes(exported_with_heads, data):
    text, heads = json.dumps(exported_with_heads[0]), exported_with_heads[1]
    assert check_export(json.loads(text), public_key=KEY.public_key, heads=heads).held == 2
    export = json.loads(text)
    place = export
    while isinstance(place, dict | list) and place and (place is export or data.draw(st.integers(0, 3)) > 0):
        outer = place
        key = data.draw(st.sampled_from(list(range(len(place)) if isinstance(place, list) else place)))
        place = place[key]
    new = data.draw(JSON.filter(lambda value: type(value) is not type(place) or value != place))
    outer[key] = new
    found = check_export(export, public_key=KEY.public_key, heads=heads)
    # One number may stand for another as JSON has it (1 and 1.0), and format 1 for 2: it is not signed.
    alike = type(place) in (int, float) and new == place and type(new) is not bool
    assert not found.ok or alike or (outer is export and key == "format" and new == 1)
    assert all(str(problem) for problem in found.problems)


@pytest.mark.parametrize(
    "body", [b"[" * 5000, b'{"head":' * 400, b"\xff\xfe", b'{"format":1e999}', b'"\\ud800"']
)
def test_hostile_bytes_are_refused_as_heads(body, tmp_path):
    with pytest.raises(LedgerError):
        CountersignedHead.from_bytes(body)
    (tmp_path / "heads").write_bytes(body + b"\n")
    with pytest.raises(LedgerError, match="line 1"):
        read_heads(tmp_path / "heads")
    with pytest.raises(LedgerError, match="as it was written"):
        HeadKeeper(tmp_path / "heads", PEER_KEY)
    assert (tmp_path / "heads").read_bytes() == body + b"\n"


# ---- the keeper -------------------------------------------------------------------------------------------


def test_a_keeper_answers_the_same_head_again_and_grows_only(home):
    keeper = HeadKeeper(home / "heads", PEER_KEY)
    before = (home / "heads").read_bytes()
    with Ledger.open(home / "l", KEY) as ledger:
        head = ledger.head()
        assert keeper.keep(head) == keeper.keep(ledger.head()) == keeper.heads()[-1]
        assert (home / "heads").read_bytes() == before
        ledger.reserve("icu", EVENT, run="r2")
        kept = keeper.keep(ledger.head())
    assert (home / "heads").read_bytes() == before + kept.to_bytes() + b"\n"
    assert keeper.newest(KEY.public_key) == kept
    assert keeper.newest(PEER_KEY.public_key) is None


def test_a_keeper_refuses_what_does_not_extend_its_last_head(home):
    keeper = HeadKeeper(home / "heads", PEER_KEY)
    before = (home / "heads").read_bytes()
    with Ledger.open(home / "copy-1", KEY) as ledger:
        with pytest.raises(LedgerError, match="the first that it lacks is record 6") as caught:
            keeper.keep(ledger.head())
        assert caught.value.record == 6
        for number in range(4):
            ledger.reserve("icu", EVENT, run=f"other-{number}")
        with pytest.raises(LedgerError, match="another record 9") as caught:
            keeper.keep(ledger.head())
        assert caught.value.record == 9
    with (
        Ledger.open(home / "fresh", KEY) as ledger,
        pytest.raises(LedgerError, match="of which none") as caught,
    ):
        keeper.keep(ledger.head())
    assert caught.value.record == 1
    assert (home / "heads").read_bytes() == before


def test_ledgers_of_several_keys_share_a_keeper_and_two_keepers_a_file(tmp_path):
    one, two = (HeadKeeper(tmp_path / "heads", PEER_KEY) for _ in range(2))
    keys = [LedgerKey.generate() for _ in range(2)]
    for sequence in range(1, 5):
        for key in keys:
            (one, two)[sequence % 2].keep(sign_head(key, "ab" * 16, sequence, f"{sequence:064x}"))
    for keeper in (one, two):
        assert [keeper.newest(key.public_key).head.sequence for key in keys] == [4, 4]
        with pytest.raises(LedgerError, match="extends record 4"):
            keeper.keep(sign_head(keys[0], "ab" * 16, 3, f"{3:064x}"))
    assert len(read_heads(tmp_path / "heads")) == 8


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(0, 1)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_keeper_takes_exactly_what_a_simple_rule_allows(tmp_path_factory, told):
    path = tmp_path_factory.mktemp("keeper") / "heads"
    keeper = HeadKeeper(path, PEER_KEY)
    newest, kept = {}, 0
    for which, sequence, story in told:
        head = sign_head((KEY, PEER_KEY)[which], "ab" * 16, sequence, f"{story:02x}" * 32)
        last = newest.get(which, (0, None))
        if sequence > last[0]:
            newest[which], kept = (sequence, story), kept + 1
        elif (sequence, story) != last:
            with pytest.raises(LedgerError, match="Expected a head that extends"):
                keeper.keep(head)
            continue
        assert keeper.keep(head).head.hash == head.hash
    assert len(read_heads(path)) == kept
    assert [kept.to_bytes() for kept in HeadKeeper(path, PEER_KEY).heads()] == path.read_bytes().split(b"\n")[
        :-1
    ]


def test_a_line_cut_short_at_any_byte_is_dropped_and_kept_anew(tmp_path):
    path = tmp_path / "heads"
    keeper = HeadKeeper(path, PEER_KEY)
    keeper.keep(sign_head(KEY, "ab" * 16, 1, "01" * 32))
    whole = path.read_bytes()
    second = sign_head(KEY, "ab" * 16, 2, "02" * 32)
    line = countersign(second, PEER_KEY).to_bytes()
    for length in range(1, len(line) + 1, 37):
        path.write_bytes(whole + line[:length])
        assert [kept.head.sequence for kept in read_heads(path)] == [1]
        again = HeadKeeper(path, PEER_KEY)
        assert path.read_bytes() == whole
        again.keep(second)
        assert [kept.head.sequence for kept in read_heads(path)] == [1, 2]


@pytest.mark.parametrize("damage", ["flip", "other key", "shrunk"])
def test_a_damaged_or_foreign_file_of_heads_is_refused(tmp_path, damage):
    path = tmp_path / "heads"
    keeper = HeadKeeper(path, PEER_KEY)
    for sequence in (1, 2):
        keeper.keep(sign_head(KEY, "ab" * 16, sequence, f"{sequence:064x}"))
    raw = path.read_bytes()
    if damage == "flip":
        path.write_bytes(raw.replace(b'"sequence":2', b'"sequence":3'))
        with pytest.raises(LedgerError, match="line 2"):
            read_heads(path)
        with pytest.raises(LedgerError, match="altered"):
            HeadKeeper(path, PEER_KEY)
    elif damage == "other key":
        with pytest.raises(LedgerError, match="kept under the key"):
            HeadKeeper(path, KEY)
    else:
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(LedgerError, match="grow only"):
            keeper.newest(KEY.public_key)


def test_a_head_that_cannot_be_written_whole_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "heads"
    keeper = HeadKeeper(path, PEER_KEY)
    keeper.keep(sign_head(KEY, "ab" * 16, 1, "01" * 32))
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr("dp.heads.os.write", lambda file, line: write(file, line[:50]))
    with pytest.raises(OSError, match="50 of"):
        keeper.keep(sign_head(KEY, "ab" * 16, 2, "02" * 32))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert keeper.newest(KEY.public_key).head.sequence == 1
    keeper.keep(sign_head(KEY, "ab" * 16, 2, "02" * 32))


def test_a_keeper_that_is_killed_has_every_head_that_it_handed_out(tmp_path):
    PEER_KEY.save(tmp_path / "peer.key")
    KEY.save(tmp_path / "ledger.key")
    finish(start("heads", tmp_path, 40, 5))
    kept = [found.head.sequence for found in HeadKeeper(tmp_path / "heads", PEER_KEY).heads()]
    handed_out = [int(line) for line in (tmp_path / "answered").read_text().split()]
    assert len(handed_out) > 100, "Too few heads for the kills to mean anything."
    assert kept == list(range(1, len(kept) + 1))
    assert set(handed_out) <= set(kept)
    assert len(set(handed_out)) == len(handed_out)
