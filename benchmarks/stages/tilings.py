"""The Triton kernels of attention one by one, as they are and with other tilings; imported where Triton serves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import Tensor
from triton.runtime.jit import JITFunction

from hvp_engine.kernels.triton import attention as kernels
from hvp_engine.kernels.triton.attention_tiling import Tiling

from .clock import Clock, tried
from .measuring import Timer
from .runner import Emit

if TYPE_CHECKING:
    from .attention import Case

_VARIANT_SECONDS = 4.0  # what compiling and measuring one tiling may take
_LEAST = 16  # rows or columns of a tile that products take
Change = Callable[[str, Tiling], Tiling]


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, list[Callable[[], object]]]]:
    """Collect the launches made inside by the name of their kernel, each to be made again."""
    found: dict[str, list[Callable[[], object]]] = {}
    run = JITFunction.run

    def note(self: Any, *args: Any, **options: Any) -> Any:
        name = self.fn.__name__
        found.setdefault(name, []).append(partial(run, self, *args, **options))
        return run(self, *args, **options)

    with patch.object(JITFunction, "run", note):
        yield found


def launches(call: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """Return what a call launches, by kernel."""
    with recorded() as found:
        call()
    return {name: partial(_again, calls) for name, calls in found.items()}


def _again(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


@contextlib.contextmanager
def tiled(change: Change) -> Iterator[None]:
    """Change the tilings of the kernels inside."""
    own = kernels.tiling

    def choose(kernel: str, *args: Any, **options: Any) -> Any:
        tile = own(kernel, *args, **options)
        return tile and change(kernel, tile)

    with patch.object(kernels, "tiling", choose):
        yield


def _only(kernel: str, other: Tiling) -> Change:
    return lambda name, tile: other if name == kernel else tile


def neighbours(tile: Tiling) -> list[Tiling]:
    """Return tilings that differ from one in a step or two, the most promising first."""
    queries, keys, warps, stages = tile.queries, tile.keys, tile.warps, tile.stages
    found = [
        (2 * queries, 2 * keys, 8, stages),
        (queries, 2 * keys, warps, stages),
        (2 * queries, keys, warps, stages),
        (queries, keys, warps, stages % 3 + 1),
        (2 * queries, keys, 8, max(1, stages - 1)),
        (queries, 2 * keys, 12 - warps if warps in (4, 8) else 4, stages),
    ]
    return [tile._replace(queries=q, keys=k, warps=w, stages=s) for q, k, w, s in found if min(q, k) >= _LEAST]


def tilings_of(call: Callable[[], object]) -> dict[str, Tiling]:
    """Return the tilings of the kernels that a call launches."""
    own: dict[str, Tiling] = {}

    def look(name: str, tile: Tiling) -> Tiling:
        own[name] = tile
        return tile

    with tiled(look):
        launched = launches(call)
    return {name: own[name] for name in launched if name in own}


def try_tilings(emit: Emit, timer: Timer, clock: Clock, case: Case, precision: str) -> None:
    """Emit the time of each kernel of two passes with tilings near the one that it has."""
    from .attention import relative

    for which in ("second", "forward"):
        call = case.passes[which]
        wanted = call()
        for name, own in tilings_of(call).items():
            for tile in neighbours(own):
                if not clock.has(_VARIANT_SECONDS):
                    return
                what = f"tiling of {name}, {precision}"
                with tried(emit, what, **_facts(tile)), tiled(_only(name, tile)):
                    found: list[Tensor] = []
                    again = launches(lambda call=call, found=found: found.extend(call()))[name]
                    emit(what=what, ms=timer.ms(again), difference=relative(found, wanted), **_facts(tile))


def try_arithmetic(emit: Emit, timer: Timer, clock: Clock, case: Case) -> None:
    """Emit the times of the passes that multiply tiles of float32 with three products of TF32 for each."""
    from .attention import relative

    for name, call in case.passes.items():
        if not clock.has(_VARIANT_SECONDS) or not tilings_of(call):
            continue
        what = f"{name}, fp32 by tf32x3"
        wanted = call()
        with tried(emit, what), tiled(lambda _, tile: tile._replace(precision="tf32x3")):
            emit(what=what, ms=timer.ms(call), difference=relative(call(), wanted))


def _facts(tile: Tiling) -> dict[str, int]:
    return {"queries": tile.queries, "keys": tile.keys, "warps": tile.warps, "stages": tile.stages}
