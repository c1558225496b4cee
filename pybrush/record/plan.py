"""What a record fixes at its first fit, as it stands in the ledger's table `plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pybrush.plan.graph import root_key
from pybrush.record.fingerprint import canonical_json
from pybrush.record.ledger import Ledger

OrderKind = Literal["shuffled", "sequential"]
Naming = Literal["content", "ids", "position"]


@dataclass(frozen=True)
class RecordPlan:
    """The plan of a record.

    Attributes:
        shards: S. slices: R.
        epochs: the e that the user asked for.
        epochs_per_slice: epochs of each stage, ceil(2 e / (R + 1)).
        seed: 0 <= seed < 2^32.
        key_id: tells the secret key from others.
        order: whether the loader shuffles.
        naming: how samples get their ids.
        contents: whether content digests are kept.
        initial_digest: digest of the initial state, in hexadecimal.
        semantic: the semantic fingerprint, plain JSON.
        semantic_digest: its digest, in hexadecimal.
        adapter: which adapter made the record.
        adapter_format: version of the layout of the adapter's states.
        settings: what the adapter notes besides; not part of the fingerprint.
        generation: 1; grows when everything is rebuilt from a new initial state.
        encryption: `algorithm` and the id of the key `ring` where stages are encrypted; None where they are not.
    """

    shards: int
    slices: int
    epochs: int
    epochs_per_slice: int
    seed: int
    key_id: str
    order: OrderKind
    naming: Naming
    contents: Literal["digest", "off"]
    initial_digest: str
    semantic: Mapping[str, Any] = field(repr=False)
    semantic_digest: str
    adapter: str
    adapter_format: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 1
    encryption: Mapping[str, str] | None = None

    @property
    def roots(self) -> list[str]:
        """The root key of each shard."""
        initial, semantic = bytes.fromhex(self.initial_digest), bytes.fromhex(self.semantic_digest)
        return [root_key(initial, semantic, shard) for shard in range(self.shards)]


def write_plan(ledger: Ledger, plan: RecordPlan) -> None:
    """Write the plan into an empty ledger, inside a transaction."""
    rows = ((name, canonical_json(value)) for name, value in asdict(plan).items())
    ledger.change_many("INSERT INTO plan VALUES (?, ?)", rows)
