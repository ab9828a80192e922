"""What a configuration would disclose: floor 7, `privopt explain`, before a key or a message exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..report.text import small, table
from ..setup.tables import Config

if TYPE_CHECKING:
    import secagg

__all__ = ["Disclosure", "explain_config"]


@dataclass(frozen=True)
class Disclosure:
    """What a run of a configuration would tell.

    Attributes:
        config: The configuration.
        parameters: Number of the model's parameters.
        clients: Number of clients.
        fields: What the one vector of a round holds, and what the server learns of each field.
    """

    config: Config
    parameters: int
    clients: int
    fields: secagg.Explanation

    @property
    def bytes_a_round(self) -> int:
        """Bytes of the one vector that a client sends in a round."""
        return 8 * self.fields.words

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "clients": self.clients,
            "parameters": self.parameters,
            "masks": self.config.masks.enabled,
            "dp": self.config.dp.enabled,
            "bytes_a_round": self.bytes_a_round,
            "bytes_a_value": self.fields.bytes_per_value,
            "learned": self.fields.to_dicts(),
            "disclosed": self._unpriced(),
        }

    def _unpriced(self) -> list[str]:
        if not self.config.dp.enabled:
            return ["the update itself: without dp, it depends on single rows without a bound"]
        named = {"loss": "the mean training loss, un-noised (disclosed by the configuration)"}
        return ["sample counts (declared public)", *(named[name] for name in self.config.dp.disclose)]

    def __str__(self) -> str:
        masks, private = self.config.masks, self.config.dp
        rows = [
            (
                line.field,
                line.reduction,
                line.learned,
                "–" if line.quantum is None else small(line.quantum),
                "–" if line.bits is None else str(line.bits),
                f"{line.bytes:,}",
            )
            for line in self.fields.lines
        ]
        columns = ("field", "combined as", "the server learns", "quantum", "bits", "bytes")
        size = f"{self.bytes_a_round:,} bytes, {self.fields.bytes_per_value:.1f} a value"
        hidden = (
            f"Each of {self.clients} clients sends one masked vector a round ({size}). Alone it is uniform "
            "noise; from the sum of all, the server learns:"
            if masks.enabled
            else f"Masks are off: the server sees the vector of each of {self.clients} clients. With masks "
            "it would learn of their sum alone:"
        )
        adaptive = (
            " at the first round's bound, which then follows the data" if masks.bound == "adaptive" else ""
        )
        lanes = (
            f"Bits are those of a lane that holds the sum of {self.clients} clients. The quantum is the step "
            f"that one client's value is rounded to{adaptive}."
        )
        noised = (
            f"Under dp every value follows from gradients clipped to {private.clip_norm:g} and noised, or is "
            f"public: ε ≤ {private.epsilon:g} at δ = {small(private.delta)} per {private.unit}, whoever "
            "sees the sum."
            if private.enabled
            else "dp is off: masks hide who sent what, not what the sum says about single rows."
        )
        unpriced = "Without a price: " + "; ".join(self._unpriced()) + "."
        learned = table(columns, rows, numeric=(3, 4, 5))
        parts = [hidden, "", learned, "", lanes]
        if masks.enabled:
            parts += ["", *self._beyond(), ""]
        return "\n".join((*parts, noised, unpriced))

    def _beyond(self) -> tuple[str, ...]:
        """What no mask hides: what others pool, and what two sums differ by."""
        found: dict[tuple[str, str, str], None] = {}  # Of a field, each pair of answers once.
        for line in self.fields.lines:
            name, _, kind = line.field.partition(" (")
            if kind not in ("clipped)", "peak)"):  # They follow in the same way.
                found[name, line.colluders, line.difference] = None
        before = (
            f"No mask hides a client from all {self.clients - 1} others of its round, if they pool their "
            "values and subtract them from the sum (colluders), nor from whoever has the sums of two rounds "
            "whose clients differ by it alone (two rounds). They learn of it:"
        )
        return before, "", table(("field", "colluders", "two rounds"), list(found))


def explain_config(config: Config) -> Disclosure:
    """What a run of `config` would disclose; loads the data and builds the model for their shapes alone.

    Args:
        config: A checked configuration.

    Returns:
        The disclosure, for people as its `str`.

    Raises:
        DataError: If the data cannot be read.
        ModelError: If the model cannot be built.
        secagg.SchemaError: If the masks cannot carry the vector, such as too many bits for so many clients.
    """
    import secagg

    from ..federation.parts import Parts

    parts = Parts(config)
    schema = parts.schema()
    clients = len(parts.data.clients)
    return Disclosure(config, schema.masked["update"].size, clients, secagg.explain(schema, clients))
