"""The models of the experiments by name, at the size that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import Source
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.paper_zoo import paper_zoo
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.small_zoo import small_zoo


def zoo(setting: Setting) -> Mapping[str, Entry]:
    """Make the entries of a size; neither models nor data are made before an entry is asked for them.

    Args:
        setting: Size, paths of data, options.

    Returns:
        Entries by name: ``mlp``, ``vgg``, ``resnet``, ``vit``, ``mixer``, ``bert``, ``gpt``; at paper size also
        ``gpt2``; at small size ``vgg-photographs``, ``resnet-photographs``, ``vit-photographs`` and
        ``mixer-photographs``.
    """
    return paper_zoo(setting) if setting.size == "paper" else small_zoo(setting)


def entry_of(setting: Setting, model: str | Entry) -> Entry:
    """Return an entry of the zoo by its name; an entry is returned as it is.

    Raises:
        ConfigurationError: There is none of that name at this size.
    """
    if isinstance(model, Entry):
        return model
    entries = zoo(setting)
    if model not in entries:
        raise ConfigurationError(
            f"There is no model {model!r} at size {setting.size}; the zoo has {', '.join(entries)}."
        )
    return entries[model]


def data_of(
    setting: Setting, models: Iterable[str | Entry] = (), others: Mapping[str, Source] | None = None
) -> dict[str, object]:
    """Return what a manifest says under ``data``: name, licence, origin and digest, by whose data they are.

    Args:
        setting: Size, paths of data.
        models: Names in the zoo, or entries of one's own.
        others: Where further data come from, by a name for their use.
    """
    found = {entry.name: dict(entry.data(0).source) for entry in (entry_of(setting, model) for model in models)}
    return {"data": found | {name: source.described() for name, source in (others or {}).items()}}
