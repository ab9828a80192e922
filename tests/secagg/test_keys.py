"""Identities and rosters: what is stored, what is refused, what never shows."""

from __future__ import annotations

import json
import os
import stat
import traceback

import pytest

from secagg import Identity, IdentityError, Roster


def test_an_identity_survives_its_file(tmp_path):
    identity = Identity.generate("clinic-0")
    identity.save(tmp_path / "key.json")
    again = Identity.load(tmp_path / "key.json")
    assert again.name == "clinic-0"
    assert again.public_key == identity.public_key
    assert again.sign(b"x") == identity.sign(b"x")
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"], "no temporary file is left"


def test_a_key_file_is_never_overwritten(tmp_path):
    path = tmp_path / "key.json"
    Identity.generate("a").save(path)
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="new file for the key of 'b', found one"):
        Identity.generate("b").save(path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "key.json"
    Identity.generate("a").save(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="got mode 0640"):
        Identity.load(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"name": "a", "private_key": "zz"}', '{"name": "a", "private_key": "00"}']
)
def test_a_file_without_an_identity_is_refused_without_quoting_it(tmp_path, text):
    path = tmp_path / "key.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(IdentityError) as info:
        Identity.load(path)
    assert info.value.__cause__ is None
    assert "zz" not in str(info.value)


def test_a_missing_file_or_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Identity.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        Identity.generate("a").save(tmp_path / "none" / "key")


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\x00", None, 3])
def test_names_are_short_and_printable(name):
    with pytest.raises(IdentityError, match="printable characters"):
        Identity.generate(name)


def test_two_identities_differ():
    assert Identity.generate("a").public_key != Identity.generate("a").public_key


def keys(n):
    return {f"c{i}": Identity.generate(f"c{i}").public_key for i in range(n)}


def test_a_roster_survives_json_and_is_ordered_by_id(tmp_path):
    clients = keys(4)
    roster = Roster(Identity.generate("s").public_key, dict(reversed(clients.items())))
    assert list(roster.clients) == sorted(clients)
    roster.save(tmp_path / "roster.json")
    again = Roster.load(tmp_path / "roster.json")
    assert again == roster
    assert hash(again) == hash(roster)
    assert repr(roster) == f"Roster(4 clients, fingerprint={roster.fingerprint})"
    with pytest.raises(TypeError):
        roster.clients["c9"] = bytes(32)  # type: ignore[index]


def test_one_party_under_two_names_is_refused():
    clients = keys(3)
    server = Identity.generate("s").public_key
    with pytest.raises(IdentityError, match="key of 'c0' again for 'sybil': one party would count twice"):
        Roster(server, {**clients, "sybil": clients["c0"]})
    with pytest.raises(IdentityError, match="key of 'the server' again for 'c1'"):
        Roster(server, {**clients, "c1": server})


@pytest.mark.parametrize("key", [b"", bytes(31), "0" * 32, None])
def test_keys_of_another_length_are_refused(key):
    with pytest.raises(IdentityError, match="public key of 'c1' as 32 bytes"):
        Roster(Identity.generate("s").public_key, {**keys(1), "c1": key})


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"server": "zz", "clients": {}}', '{"server": "00", "clients": []}']
)
def test_text_that_is_no_roster_is_refused(text):
    with pytest.raises(IdentityError):
        Roster.from_json(text)


def test_a_damaged_key_file_is_quoted_nowhere_in_the_error(tmp_path):
    path = tmp_path / "key.json"
    Identity.generate("clinic").save(path)
    text = path.read_text("utf-8")
    secret = json.loads(text)["private_key"]
    for damaged in (
        text.rstrip()[:-1],
        text.replace('"name": "clinic"', '"name": ""'),
        text.replace(secret, secret[:-2]),
    ):
        path.write_text(damaged, "utf-8")
        with pytest.raises(IdentityError) as caught:
            Identity.load(path)
        assert caught.value.__context__ is None
        trace = caught.value.__traceback__
        assert trace is not None
        ours = traceback.StackSummary.extract(traceback.walk_tb(trace.tb_next), capture_locals=True)
        assert len(ours) == 1, "one frame of the library"
        assert secret[:-2] not in "".join(ours.format())


def test_a_roster_is_read_in_one_way_only(tmp_path):
    server, client = Identity.generate("server").public_key.hex(), Identity.generate("c").public_key.hex()
    texts = [
        f'{{"format": 1, "server": "{server}", "clients": {{"c": "{client}", "c": "{server}"}}}}',
        f'{{"format": 2, "server": "{server}", "clients": {{"c": "{client}"}}}}',
        f'{{"format": 1, "server": "{server}", "clients": {{"c": "{client}"}}, "more": 1}}',
        f'{{"server": "{server}", "clients": {{"c": "{client}"}}}}',
    ]
    for text in texts:
        with pytest.raises(IdentityError, match="each client once"):
            Roster.from_json(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(IdentityError, match="got no text"):
        Roster.load(tmp_path / "binary")


def test_rosters_have_one_fingerprint_if_and_only_if_they_are_equal():
    keys = [Identity.generate("x").public_key for _ in range(4)]
    roster = Roster(keys[0], {"a": keys[1], "b": keys[2]})
    others = [
        Roster(keys[3], {"a": keys[1], "b": keys[2]}),
        Roster(keys[0], {"a": keys[2], "b": keys[1]}),
        Roster(keys[0], {"a": keys[1]}),
        Roster(keys[0], {"a": keys[1], "c": keys[2]}),
    ]
    assert Roster(keys[0], {"b": keys[2], "a": keys[1]}).fingerprint == roster.fingerprint
    assert len({roster.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert roster.fingerprint in repr(roster)


def test_a_roster_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "roster.json"
    first = Roster(Identity.generate("s").public_key, {})
    first.save(path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        Roster(Identity.generate("s").public_key, {}).save(path)
    assert Roster.load(path) == first
    assert [each.name for each in tmp_path.iterdir()] == ["roster.json"]
