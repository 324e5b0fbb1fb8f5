// The instruction set that the kernels run with, and how a kernel is declared for each of them.
#pragma once

namespace hvp {

enum class Isa { baseline, avx2, avx512 };

// The widest instruction set of this CPU, or the narrower one named by HVP_ENGINE_ISA (read once). Away from
// x86-64 there is only the baseline, compiled for what every processor of the architecture has (NEON on
// aarch64). Throws std::invalid_argument for an unknown name or one that this CPU lacks.
Isa isa();
const char* isa_name();

}  // namespace hvp

// Declares one kernel in each instruction set's namespace; use inside namespace hvp.
#define HVP_DECLARE_KERNEL(...) \
    namespace baseline {        \
    __VA_ARGS__;                \
    }                           \
    namespace avx2 {            \
    __VA_ARGS__;                \
    }                           \
    namespace avx512 {          \
    __VA_ARGS__;                \
    }
