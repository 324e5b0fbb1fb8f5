// Element-wise activations with their first and second derivatives, each in one pass over memory.
//
// An operand holds `batch` groups of `size` elements; its batch stride is 0 where all groups share the same
// values. Outputs are contiguous. A null input counts as zero, a null output is not computed.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"
#include "hvp/operand.h"

namespace hvp {

enum class Activation { gelu = 0, gelu_tanh = 1, silu = 2 };

struct ElementwiseShape {
    Dtype type;
    std::int64_t batch;
    std::int64_t size;
};

HVP_DECLARE_KERNEL(void activation_forward(Activation kind, const ElementwiseShape& shape, Operand x,
                                           void* y))
// dx = g f'(x)
HVP_DECLARE_KERNEL(void activation_backward(Activation kind, const ElementwiseShape& shape, Operand x,
                                            Operand g, void* dx))
// For a cotangent u of dx: d_g = u f'(x), d_x = u g f''(x).
HVP_DECLARE_KERNEL(void activation_double_backward(Activation kind, const ElementwiseShape& shape, Operand x,
                                                   Operand g, Operand u, void* d_g, void* d_x))

// y = silu(gate) up
HVP_DECLARE_KERNEL(void swiglu_forward(const ElementwiseShape& shape, Operand gate, Operand up, void* y))
HVP_DECLARE_KERNEL(void swiglu_backward(const ElementwiseShape& shape, Operand gate, Operand up, Operand g,
                                        void* d_gate, void* d_up))
// For cotangents u_gate, u_up of the two gradients.
HVP_DECLARE_KERNEL(void swiglu_double_backward(const ElementwiseShape& shape, Operand gate, Operand up,
                                               Operand g, Operand u_gate, Operand u_up, void* d_g,
                                               void* d_gate, void* d_up))

}  // namespace hvp
