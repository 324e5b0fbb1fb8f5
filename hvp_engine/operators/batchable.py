"""Kinds of autograd nodes whose backward is right when several vectors pass at once; each is tried by a test.

PyTorch's batched passes run on its older vmap. Under it the formula of a node may fail, or may read a shape that is not
there: group normalisation's is silently wrong where one sample meets one group. What is listed here was compared with
single passes at shapes where a wrong one would broadcast (tests/operators/test_batchable.py). What is not listed is not
refused: it is compared in the job itself, see :mod:`hvp_engine.scheduling.passes`.
"""

from __future__ import annotations

# Derivatives in which a flat vector may be read as pairs of real and imaginary parts.
COMPLEX_VIEWS = frozenset(("ViewAsRealBackward0", "ViewAsComplexBackward0"))

_KINDS = """
    AbsBackward0 AccumulateGrad AdaptiveAvgPool2DBackward0 AdaptiveAvgPool2DBackwardBackward0
    AdaptiveMaxPool2DBackward0 AdaptiveMaxPool2DBackwardBackward0 AddBackward0 AddBackward1 AddbmmBackward0
    AddcdivBackward0 AddcmulBackward0 AddmmBackward0 AddmvBackward0 AliasBackward0 AmaxBackward0 AminBackward0
    AngleBackward0 AsinhBackward0 Atan2Backward0 AtanBackward0 AvgPool2DBackward0 AvgPool2DBackwardBackward0
    AvgPool3DBackward0 AvgPool3DBackwardBackward0 BaddbmmBackward0 BinaryCrossEntropyBackward0
    BinaryCrossEntropyBackwardBackward0 BinaryCrossEntropyWithLogitsBackward0 BmmBackward0 CatBackward0
    CeluBackward0 ClampBackward1 ClampMaxBackward0 ClampMinBackward0 CloneBackward0 Col2ImBackward0 ComplexBackward0
    ConjBackward0 ConstantPadNdBackward0 ConvolutionBackward0 ConvolutionBackwardBackward0 CopyBackwards CopySlices
    CosBackward0 CoshBackward0 CumprodBackward0 CumsumBackward0 DiagEmbedBackward0 DiagonalBackward0
    DiagonalBackward0_copy DiagonalBackwardBackward0 DigammaBackward0 DivBackward0 DivBackward1 DotBackward0
    EluBackward0 EluBackwardBackward0 EmbeddingBackward0 EmbeddingDenseBackwardBackward0 ErfBackward0 Exp2Backward0
    ExpBackward0 ExpandBackward0 Expm1Backward0 FftC2CBackward0 FftC2RBackward0 FftR2CBackward0 FlipBackward0
    FloorBackward0 GatherBackward0 GeluBackward0 GeluBackwardBackward0 GluBackward0 GluBackwardBackward0
    HardshrinkBackward0 HardshrinkBackwardBackward0 HardswishBackward0 HardswishBackwardBackward0 HardtanhBackward0
    HardtanhBackwardBackward0 HuberLossBackward0 HuberLossBackwardBackward0 HypotBackward0 Im2ColBackward0
    IndexAddBackward0 IndexBackward0 IndexCopyBackward0 IndexFillBackward0 IndexFillBackward1 IndexPutBackward0
    IndexPutImplBackward0 IndexSelectBackward0 KthvalueBackward0 LeakyReluBackward0 LeakyReluBackwardBackward0
    LerpBackward0 LerpBackward1 LgammaBackward0 LinalgCholeskyExBackward0 LinalgDetBackward0 LinalgEighBackward0
    LinalgHouseholderProductBackward0 LinalgInvExBackward0 LinalgMatrixExpBackward0 LinalgSlogdetBackward0
    LinalgSolveExBackward0 LinalgSolveTriangularBackward0 LinalgSvdBackward0 LinalgVectorNormBackward0
    Log10Backward0 Log1PBackward0 Log2Backward0 LogBackward0 LogSigmoidBackward0 LogSigmoidBackwardBackward0
    LogSoftmaxBackward0 LogSoftmaxBackwardDataBackward0 LogaddexpBackward0 LogcumsumexpBackward0 LogsumexpBackward0
    MaskedFillBackward0 MaskedFillBackward1 MaskedScatterBackward0 MaskedSelectBackward0 MaxBackward0 MaxBackward1
    MaxPool2DWithIndicesBackward0 MaxPool2DWithIndicesBackwardBackward0 MaxPool3DWithIndicesBackward0
    MaxPool3DWithIndicesBackwardBackward0 MaximumBackward0 MeanBackward0 MeanBackward1 MedianBackward0 MinBackward0
    MinimumBackward0 MishBackward0 MmBackward0 MseLossBackward0 MseLossBackwardBackward0 MulBackward0 MulBackward1
    MvBackward0 NativeBatchNormBackward0 NativeBatchNormBackwardBackward0 NativeLayerNormBackward0
    NativeLayerNormBackwardBackward0 NegBackward0 NllLoss2DBackward0 NllLoss2DBackwardBackward0 NllLossBackward0
    NllLossBackwardBackward0 PermuteBackward0 PixelShuffleBackward0 PixelUnshuffleBackward0 PolarBackward0
    PolygammaBackward0 PowBackward0 PowBackward1 PowBackward2 PreluKernelBackward0 PreluKernelBackwardBackward0
    ProdBackward0 ProdBackward1 PutBackward0 ReciprocalBackward0 ReflectionPad2DBackward0
    ReflectionPad2DBackwardBackward0 ReluBackward0 RepeatBackward0 ReplicationPad2DBackward0
    ReplicationPad2DBackwardBackward0 ReshapeAliasBackward0 RollBackward0 RsqrtBackward0 RsubBackward1
    ScatterAddBackward0 ScatterBackward0 ScatterBackward1 SelectBackward0 SelectBackwardBackward0 SgnBackward0
    SigmoidBackward0 SigmoidBackwardBackward0 SignBackward0 SiluBackward0 SinBackward0 SincBackward0 SinhBackward0
    SliceBackward0 SliceBackwardBackward0 SmoothL1LossBackward0 SmoothL1LossBackwardBackward0
    SoftMarginLossBackward0 SoftMarginLossBackwardBackward0 SoftmaxBackward0 SoftmaxBackwardDataBackward0
    SoftplusBackward0 SoftplusBackwardBackward0 SoftshrinkBackward0 SoftshrinkBackwardBackward0 SortBackward0
    SplitBackward0 SqrtBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward4 StackBackward0 StdBackward0
    SubBackward0 SubBackward1 SumBackward0 SumBackward1 TBackward0 TakeBackward0 TanBackward0 TanhBackward0
    TanhBackwardBackward0 ThresholdBackward0 ThresholdBackwardBackward0 ToCopyBackward0 TopkBackward0
    TransposeBackward0 TransposeBackward1 TrilBackward0 TrilinearBackward0 TriuBackward0 UnbindBackward0
    UnfoldBackward0 UnfoldBackwardBackward0 UnsafeSplitBackward0 UnsafeViewBackward0 UnsqueezeBackward0
    UnsqueezeBackward1 UpsampleBicubic2DBackward0 UpsampleBicubic2DBackwardBackward0 UpsampleBilinear2DBackward0
    UpsampleBilinear2DBackwardBackward0 UpsampleLinear1DBackward0 UpsampleLinear1DBackwardBackward0
    UpsampleNearest1DBackward0 UpsampleNearest1DBackwardBackward0 UpsampleNearest2DBackward0
    UpsampleNearest2DBackwardBackward0 VarBackward0 VdotBackward0 ViewAsComplexBackward0 ViewAsRealBackward0
    ViewBackward0 WeightNormInterfaceBackward0 WhereBackward0
"""
BATCHABLE = frozenset(_KINDS.split())
