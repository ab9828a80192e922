"""Policy: what a participant insists on, whatever a server offers."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PolicyError
from .masks import CIPHER_KEY_BYTES, CipherName
from .messages import Offer

MAX_CLIENTS = 2**16


@dataclass(frozen=True, slots=True)
class Policy:
    """Local limits; an offer that is weaker in any of them is refused before a key is made.

    A sum over two clients tells each of them the other's value, so two are always refused. Among three, two
    that collude (or one and the server) are enough; that takes the explicit consent `allow_three`.

    Args:
        min_clients: Smallest cohort to take part in.
        threshold_fraction: Smallest fraction of the cohort that must survive for a sum to be released.
        max_clients: Largest cohort: a limit on work and on the width of lanes.
        allow_three: Consent to `min_clients=3`.
        cipher: Weakest mask cipher: AES-128 (128-bit security) or AES-256.

    Raises:
        PolicyError: If the policy would protect nobody.

    Example:
        >>> Policy(min_clients=2)
        Traceback (most recent call last):
        ...
        secagg.errors.PolicyError: Expected min_clients >= 3, got 2: a sum over two clients tells each ...
    """

    min_clients: int = 5
    threshold_fraction: float = 2 / 3
    max_clients: int = MAX_CLIENTS
    allow_three: bool = False
    cipher: CipherName = "AES-128"

    def __post_init__(self) -> None:
        """Refuse limits that protect nobody or contradict each other."""
        if self.min_clients < 3:
            raise PolicyError(
                f"Expected min_clients >= 3, got {self.min_clients}: a sum over two clients tells each of "
                "them the other's value. Find more clients."
            )
        if self.min_clients == 3 and not self.allow_three:
            raise PolicyError(
                "Expected min_clients >= 4, got 3: any two clients that collude, or one and the server, "
                "learn the third's value. Find more clients, or consent with allow_three=True."
            )
        if not self.min_clients <= self.max_clients <= MAX_CLIENTS:
            raise PolicyError(
                f"Expected max_clients in {self.min_clients} (min_clients)..{MAX_CLIENTS}, got "
                f"{self.max_clients}."
            )
        if not 0.5 < self.threshold_fraction <= 1:
            # With half or less, two disjoint sets of survivors could both be unmasked.
            raise PolicyError(f"Expected threshold_fraction in (0.5, 1], got {self.threshold_fraction}.")
        if self.cipher not in CIPHER_KEY_BYTES:
            raise PolicyError(f"Expected cipher in {sorted(CIPHER_KEY_BYTES)}, got {self.cipher!r}.")

    def verify_offer(self, offer: Offer) -> None:
        """Raise PolicyError, with all reasons, if `offer` is weaker than this policy."""
        weaker = []
        if offer.min_clients < self.min_clients:
            weaker.append(f"min_clients={offer.min_clients}, at least {self.min_clients} wanted")
        if not offer.threshold_fraction >= self.threshold_fraction:
            weaker.append(
                f"threshold_fraction={offer.threshold_fraction:.3f}, at least "
                f"{self.threshold_fraction:.3f} wanted"
            )
        if offer.capacity > self.max_clients:
            weaker.append(f"capacity={offer.capacity}, at most {self.max_clients} clients wanted")
        if offer.capacity < self.min_clients:
            weaker.append(f"capacity={offer.capacity}, at least {self.min_clients} clients wanted")
        if CIPHER_KEY_BYTES[offer.cipher] < CIPHER_KEY_BYTES[self.cipher]:
            weaker.append(f"cipher={offer.cipher}, at least {self.cipher} wanted")
        if weaker:
            raise PolicyError(
                f"Round {offer.round}: the server's offer is weaker than this client's policy: "
                f"{'; '.join(weaker)}. Change the server's policy, or this client's if its owner agrees."
            )

    def verify_cohort(self, round: int, size: int) -> None:
        """Raise PolicyError if a roster of `size` clients is smaller or larger than this policy allows."""
        if not self.min_clients <= size <= self.max_clients:
            raise PolicyError(
                f"Round {round}: expected a roster of {self.min_clients}..{self.max_clients} clients, got "
                f"{size}."
            )
