"""R2: a server that wants both secrets of a client, or a sum that nobody agreed to."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from types import SimpleNamespace

import msgspec
import pytest

from secagg import (
    Client,
    ClientPhase,
    CohortError,
    FileRegister,
    MessageError,
    PhaseError,
    Policy,
    PolicyError,
    RoundAborted,
    RoundReused,
)
from secagg.guard import Guard
from secagg.messages import Agreement, Survivors
from secagg.sharing import MASK_SEED, SELF_SEED, RoundSecrets
from tests.secagg.threats.attacker import THREE, Attacker, assert_is_sum, secret_values


class Lax(Policy):
    """A policy that takes any threshold."""

    __slots__ = ()

    def verify_graph(self, *_):
        pass

    def verify_offer(self, _):
        pass


LAX = Lax(min_clients=3, allow_three=True, colluders=0)


def two_lists(parties: Attacker, values) -> dict:
    """Half of the clients is told that c0 survived, the other half that it dropped out."""
    parties.share()
    parties.deliver()
    parties.submit(values)
    with_victim, without = {"c0", "c1", "c2"}, {"c1", "c2", "c3"}
    for chosen, asked in ((with_victim, ["c0", "c1"]), (without, ["c2", "c3"])):
        for name in asked:
            parties.ask(name, chosen)
        for name in asked:
            parties.unmask(name, chosen)
    return parties.learn(["c0"])


def test_two_lists_give_both_secrets_where_the_threshold_is_half():
    parties = Attacker(4, policy=LAX)
    values = secret_values(parties.names)
    parties.advertise(parties.offer(threshold_fraction=0.5))
    assert_is_sum(two_lists(parties, values), [values["c0"]])


def test_a_threshold_with_which_two_lists_could_work_is_refused():
    for colluders, size, fraction in ((0, 4, 0.5), (1, 5, 0.6), (2, 8, 0.625)):
        policy = Policy(min_clients=4, threshold_fraction=0.51, colluders=colluders)
        parties = Attacker(size, policy=policy)
        offer = parties.offer(threshold_fraction=fraction)
        if fraction < 0.51:
            with pytest.raises(PolicyError, match=r"threshold_fraction=0\.500, at least 0\.510 wanted"):
                parties.advertise(offer)
            continue
        parties.advertise(offer)
        with pytest.raises(PolicyError, match=r"expected 2 \* threshold > clients \+ colluders, got thresh"):
            parties.share()
        assert parties.clients["c0"].phase is ClientPhase.IDLE


def test_two_lists_fail_at_the_threshold_that_is_asked_for():
    parties = Attacker(4, policy=THREE)
    parties.advertise(parties.offer())
    with pytest.raises(CohortError, match=r"2 of this client's holders agreed .* threshold is 3"):
        two_lists(parties, secret_values(parties.names))
    assert parties.secret("c0", MASK_SEED) is None
    assert parties.secret("c0", SELF_SEED) is None


class Trusting(Client):
    """Gives shares for whatever set it was named: no signatures."""

    def _verify_agreement(self, *_):
        pass


def a_list_each(parties: Attacker, values) -> dict:
    """c5 is corrupt. Each of the others is told another set, so that the masks of all but two come off."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(values)
    told = {name: {name, "c0", "c1", "c5"} for name in ("c2", "c3", "c4")}
    told |= {"c0": {"c0", "c1", "c5", "c2"}, "c1": {"c0", "c1", "c5", "c3"}}
    for name, chosen in told.items():
        parties.ask(name, chosen)
        parties.forge_corrupt(chosen)
        parties.unmask(name, chosen)
    return parties.learn(["c0", "c1"])


def test_a_list_for_each_client_undercuts_the_smallest_sum_where_nobody_checks_signatures():
    policy = Policy(min_clients=4, colluders=1)
    parties = Attacker(6, corrupt=["c5"], client=Trusting, policy=policy)
    values = secret_values(parties.names)
    found = a_list_each(parties, values)  # two values, where everybody insists on four
    assert_is_sum(found, [values["c0"], values["c1"]])


def test_a_list_for_each_client_finds_too_few_signatures():
    policy = Policy(min_clients=4, colluders=1)
    parties = Attacker(6, corrupt=["c5"], policy=policy)
    with pytest.raises(CohortError, match="2 of this client's holders agreed on the survivors, threshold"):
        a_list_each(parties, secret_values(parties.names))


def test_signatures_of_another_set_are_not_taken_for_this_one():
    parties = Attacker(4, policy=THREE)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(secret_values(parties.names))
    everybody = frozenset(parties.names)
    parties.ask("c0", everybody)
    for name in ("c1", "c2"):
        parties.ask(name, everybody - {"c3"})
        parties.now.signatures[name, everybody] = parties.now.signatures[name, everybody - {"c3"}]
    with pytest.raises(RoundAborted, match="'c1' did not sign the survivors that the server") as info:
        parties.unmask("c0", everybody)
    assert info.value.blame == ("c1",)
    assert parties.clients["c0"].phase is ClientPhase.IDLE


class Alone(Client):
    """Goes on with however few boxes."""

    def _accept_delivery(self, state, message, boxes):
        asked = state.offer
        state.offer = msgspec.structs.replace(asked, threshold_fraction=0.01)
        super()._accept_delivery(state, message, boxes)
        state.offer = asked


def cut_off(parties: Attacker, values) -> dict:
    """c0 gets the box of the corrupt c4 alone, so nothing else masks it; the others hold its shares."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver({"c0": ["c4"]})
    parties.submit(values)
    honest = ["c1", "c2", "c3"]
    parties.forge_corrupt(parties.names)
    for name in honest:
        parties.ask(name, parties.names)
    for name in honest:
        parties.unmask(name, parties.names)
    return parties.learn(["c0"])


def no_receipts(monkeypatch):
    """Whether the other side of a pair put the mask on, nobody asks."""
    monkeypatch.setattr(RoundSecrets, "verify", lambda *_: [])


ONE = Policy(min_clients=4, colluders=1)


def test_a_client_that_got_no_honest_box_is_read_where_it_goes_on_all_the_same(monkeypatch):
    no_receipts(monkeypatch)
    parties = Attacker(5, corrupt=["c4"], client=Alone, policy=ONE)
    values = secret_values(parties.names)
    assert_is_sum(cut_off(parties, values), [values["c0"]])


def test_a_client_that_got_too_few_boxes_leaves():
    parties = Attacker(5, corrupt=["c4"], policy=ONE)
    with pytest.raises(CohortError, match="2 of this client's holders shared their secrets, threshold is 4"):
        cut_off(parties, secret_values(parties.names))
    assert parties.clients["c0"].phase is ClientPhase.IDLE


def test_others_notice_that_a_client_lacks_their_masks_and_do_not_unmask_it():
    parties = Attacker(5, corrupt=["c4"], client=Alone, policy=ONE)
    with pytest.raises(
        RoundAborted, match=r"\['c0'\] survived without the shares that this client sealed"
    ) as e:
        cut_off(parties, secret_values(parties.names))
    assert e.value.blame == ("c0",)
    assert ("c0", SELF_SEED) not in parties.now.seeds
    assert parties.secret("c0", SELF_SEED) is None


class Careless(Client):
    """Signs sets with clients whose boxes it never had."""

    def _accept_survivors(self, state, message):
        secrets, state.secrets = state.secrets, SimpleNamespace(senders=frozenset(state.graph.names))
        try:
            return super()._accept_survivors(state, message)
        finally:
            state.secrets = secrets


def half_of_the_masks(parties: Attacker, values) -> dict:
    """All six sign that six are in the sum, while c0 to c3 (corrupt) put masks on among themselves only.

    c4 and c5 have their boxes and put masks on with them, so c0 to c2 miss no receipt.
    """
    parties.advertise(parties.offer())
    parties.share()
    clique = ["c0", "c1", "c2", "c3"]
    parties.deliver(dict.fromkeys(clique, clique))
    parties.submit(values)
    honest = [name for name in parties.names if name != "c3"]
    parties.forge_corrupt(parties.names)
    for name in honest:
        parties.ask(name, parties.names)
    for name in clique[:3]:
        parties.unmask(name, parties.names)
    return parties.learn(clique[:3])


SIX = Policy(min_clients=6, colluders=1)


def test_masks_among_four_give_the_sum_of_four_where_six_are_asked_for():
    parties = Attacker(6, corrupt=["c3"], client=Careless, policy=SIX)
    values = secret_values(parties.names)
    found = half_of_the_masks(parties, values)
    assert_is_sum(found, [values[name] for name in ("c0", "c1", "c2")])


def test_survivors_whose_boxes_were_never_delivered_are_refused():
    parties = Attacker(6, corrupt=["c3"], policy=SIX)
    with pytest.raises(
        RoundAborted, match=r"counts \['c4', 'c5'\] as survivors, whose shares it never"
    ) as info:
        half_of_the_masks(parties, secret_values(parties.names))
    assert info.value.blame == ("c4", "c5")


class Twice(Client):
    """Signs every set it is shown, and gives shares for each."""

    def _expected(self):
        return (*super()._expected(), Survivors, Agreement)

    def _accept_agreement(self, state, message, signatures):
        both, awaited, phase = dict(state.secrets._shares), state.secrets._awaited, self._phase
        answer = super()._accept_agreement(state, message, signatures)
        state.secrets = self.kept
        state.secrets._shares, state.secrets._awaited = both, awaited
        self._round, self._phase = state, phase
        return answer

    def _drop(self):
        self.kept = self._round.secrets if self._round else None
        super()._drop()


def both_shares(parties: Attacker, values) -> dict:
    """Everybody signs that c0 is in the sum, gives shares; then the same without c0."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(values)
    for chosen in (parties.names, parties.names[1:]):
        for name in parties.names[1:]:
            parties.ask(name, chosen)
        for name in parties.names[1:]:
            parties.unmask(name, chosen)
    return parties.learn(["c0"])


def test_a_client_that_signs_two_sets_and_gives_both_shares_betrays_its_peer():
    parties = Attacker(4, client=Twice, policy=THREE)
    values = secret_values(parties.names)
    assert_is_sum(both_shares(parties, values), [values["c0"]])


def test_a_client_signs_one_set_and_gives_one_share():
    parties = Attacker(4, policy=THREE)
    with pytest.raises(MessageError, match="Refused a message: it is not one that a party"):
        both_shares(parties, secret_values(parties.names))
    assert parties.secret("c0", SELF_SEED) is not None
    assert len(parties.now.shares["c0", SELF_SEED]) == 3
    assert ("c0", MASK_SEED) not in parties.now.shares


def test_a_client_that_signed_refuses_another_set_and_keeps_to_its_own():
    parties = Attacker(4, policy=THREE)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(secret_values(parties.names))
    for name in parties.names:
        parties.ask(name, parties.names)
    with pytest.raises(MessageError, match="Refused a message"):
        parties.ask("c0", ["c0", "c1", "c2"])
    parties.unmask("c0", parties.names)  # the set that it signed still counts


@pytest.mark.parametrize("chosen", [["c1", "c2", "c3"], []])
def test_a_set_without_the_client_is_refused(chosen):
    parties = Attacker(4, policy=THREE)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(secret_values(parties.names))
    with pytest.raises(RoundAborted, match="the server counts 'c0' as dropped; its vector came too late"):
        parties.ask("c0", chosen)
    assert parties.clients["c0"].phase is ClientPhase.IDLE


def restart_between(parties: Attacker, values, restart) -> dict:
    """c1 to c3 sign one set and give their shares; they come up again from what was kept, for another set."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(values)
    kept = restart(parties, None)
    for chosen in (parties.names, parties.names[1:]):
        for name in parties.names[1:]:
            parties.ask(name, chosen)
        for name in parties.names[1:]:
            parties.unmask(name, chosen)
        kept = restart(parties, kept)
    return parties.learn(["c0"])


def test_a_client_that_comes_up_again_from_a_file_gives_the_other_share():
    """The file is played by a copy of the state: a round's secrets that outlive their process."""

    def from_file(parties, kept):
        if kept is not None:
            for name, (state, secrets, slots) in kept.items():
                for slot, value in slots.items():
                    setattr(secrets, slot, value)
                state.secrets = secrets
                client = parties.clients[name] = parties.restarted(name)
                client._round, client._phase = state, ClientPhase.SUBMITTED
        return {
            name: (
                parties.clients[name]._round,
                parties.clients[name]._round.secrets,
                {
                    "_shares": dict(parties.clients[name]._round.secrets._shares),
                    "_awaited": parties.clients[name]._round.secrets._awaited,
                },
            )
            for name in parties.names[1:]
        }

    parties = Attacker(4, policy=THREE)
    values = secret_values(parties.names)
    assert_is_sum(restart_between(parties, values, from_file), [values["c0"]])


def test_a_client_that_restarts_is_out_of_the_round_and_cannot_be_led_into_it_again(tmp_path):
    registers = {f"c{i}": FileRegister(tmp_path / f"c{i}") for i in range(4)}
    parties = Attacker(4, policy=THREE, registers=registers)

    def come_up(parties, kept):
        if kept is not None:
            for name in parties.names[1:]:
                parties.clients[name] = parties.restarted(name, FileRegister(tmp_path / name))
        return {}

    with pytest.raises(MessageError, match="Refused a message: it is not one that a party"):
        restart_between(parties, secret_values(parties.names), come_up)
    with pytest.raises(RoundReused, match=r"Round 1 of session .* was already used"):
        parties.clients["c1"].receive(parties.offer(1))


def test_the_secrets_of_a_round_cannot_be_copied_or_written():
    parties = Attacker(4)
    parties.advertise(parties.offer())
    client = parties.clients["c0"]
    for secret in (client, client._round, client._round.secrets, client._round.secrets._mask_key):
        for copy_of in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=f"{type(secret).__name__} holds secrets and cannot be pick"):
                copy_of(secret)


class Unhurried(Policy):
    """Verifies survivors slowly: both threads are in the check before either is through."""

    __slots__ = ()
    meet = threading.Barrier(2)

    def verify_survivors(self, *_):
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meet.wait(1.0)


def race(parties: Attacker) -> set[bytes]:
    """Two threads hand c0 two sets at once; returns the sets that it signed."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(secret_values(parties.names))
    Unhurried.meet.reset()
    signed = set()

    def hand(chosen):
        with contextlib.suppress(MessageError):
            signed.add(parties.opened(parties.ask("c0", chosen)).message.survivors)

    threads = [threading.Thread(target=hand, args=(chosen,)) for chosen in (parties.names, parties.names[:3])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return signed


def test_two_threads_make_a_client_sign_two_sets_where_its_calls_are_not_one_at_a_time(monkeypatch):
    monkeypatch.setattr(Guard, "one_call", lambda self: contextlib.nullcontext())
    policy = Unhurried(min_clients=3, allow_three=True, colluders=0)
    assert len(race(Attacker(4, policies={"c0": policy}, policy=THREE))) == 2


def test_of_two_threads_one_gets_a_signature():
    policy = Unhurried(min_clients=3, allow_three=True, colluders=0)
    assert len(race(Attacker(4, policies={"c0": policy}, policy=THREE))) == 1


def test_a_call_from_within_a_call_is_refused():
    parties = Attacker(4, policy=THREE)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    client, values = parties.clients["c0"], secret_values(parties.names)["c0"]
    calm = client._rounding

    def meddling(session, number):
        client.submit(values)
        return calm(session, number)

    client._rounding = meddling
    with pytest.raises(PhaseError, match="Expected one call after another, got one from within another call"):
        client.submit(values)
    client._rounding = calm
    assert client.submit(values), "nothing was masked yet"
