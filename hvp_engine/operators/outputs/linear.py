"""Which nodes of an autograd graph are linear in what arrives at them, so that they only weigh and add."""

from __future__ import annotations

from torch.autograd.graph import Node

from hvp_engine.operators.autograd_nodes import name_of

# Linear in every tensor that arrives, whatever else the operation takes.
_KINDS = """
    AddBackward0 AddBackward1 AliasBackward0 AsStridedBackward0 CatBackward0 CloneBackward0 ConstantPadNdBackward0
    CumsumBackward0 DiagonalBackward0 ExpandBackward0 FlipBackward0 GatherBackward0 IndexBackward0
    IndexSelectBackward0 MaskedFillBackward0 MaskedSelectBackward0 MeanBackward0 MeanBackward1 NarrowBackward0
    NegBackward0 NllLoss2DBackward0 NllLossBackward0 PermuteBackward0 RepeatBackward0 ReshapeAliasBackward0
    RollBackward0 RsubBackward0 RsubBackward1 ScatterAddBackward0 SelectBackward0 SliceBackward0 SplitBackward0
    SplitWithSizesBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward2 SqueezeBackward3 SqueezeBackward4
    StackBackward0 SubBackward0 SubBackward1 SumBackward0 SumBackward1 TBackward0 ToCopyBackward0 TransposeBackward0
    TransposeBackward1 UnbindBackward0 UnsafeSplitBackward0 UnsafeViewBackward0 UnsqueezeBackward0
    UnsqueezeBackward1 ViewBackward0 WhereBackward0
"""
LINEAR = frozenset(_KINDS.split())

# Linear in one factor while the others are constants.
_FACTORS = frozenset(("BmmBackward0", "DotBackward0", "MmBackward0", "MulBackward0", "MulBackward1", "MvBackward0"))
_QUOTIENTS = frozenset(("DivBackward0", "DivBackward1"))

# They change the shape of one tensor, no value.
_SHAPES = """
    AliasBackward0 PermuteBackward0 ReshapeAliasBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward4 TBackward0
    ToCopyBackward0 TransposeBackward0 UnsafeViewBackward0 UnsqueezeBackward0 ViewBackward0
"""
SHAPES = frozenset(_SHAPES.split())


def is_linear(node: Node, varying: list[int]) -> bool:
    """Say whether a node's result is linear in the inputs that are not constants.

    Args:
        node: The node.
        varying: Positions of these inputs among its ``next_functions``.
    """
    name = name_of(node)
    if name in LINEAR:
        return True
    if name in _FACTORS:
        return len(varying) == 1
    return name in _QUOTIENTS and varying == [0]
