"""Four blocks of a model that stand for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.entry import Entry

_ROLES = (r"query|wq$", r"value|wv$", r"c_fc$|fc1$|intermediate", r"wte|word_embedding|embeddings?$")


def four(entry: Entry) -> dict[str, Sequence[str]]:
    """Choose four blocks: of a Transformer some that do different things, of another network some from end to end.

    These are query, value and first MLP layer of the middle layer, and the embedding; and the first, two in the middle,
    and the last.

    Raises:
        ConfigurationError: A Transformer has no block of one of these roles.
    """
    names = list(entry.blocks)
    if entry.family != "transformer":
        chosen = [names[round(place * (len(names) - 1) / 3)] for place in range(4)]
        return {name: entry.blocks[name] for name in chosen}
    chosen = []
    for role in _ROLES:
        matching = [name for name in names if re.search(role, name)]
        if not matching:
            raise ConfigurationError(f"No block of {entry.name} is a {role}; its blocks are {', '.join(names)}.")
        chosen.append(matching[len(matching) // 2])
    return {name: entry.blocks[name] for name in chosen}
