// Run-time choice among the copies of a kernel. For bindings only: kernel sources must not include it.
#pragma once

#include "hvp/isa.h"

namespace hvp {

#if defined(__x86_64__)

template <typename Kernel>
Kernel select_kernel(Kernel baseline, Kernel avx2, Kernel avx512) {
    switch (isa()) {
        case Isa::avx512:
            return avx512;
        case Isa::avx2:
            return avx2;
        default:
            return baseline;
    }
}

#endif

}  // namespace hvp

// HVP_SELECT(name)(arguments...) calls hvp::<isa>::name, declared with HVP_DECLARE_KERNEL.
#if defined(__x86_64__)
#define HVP_SELECT(kernel) \
    ::hvp::select_kernel(&::hvp::baseline::kernel, &::hvp::avx2::kernel, &::hvp::avx512::kernel)
#else
#define HVP_SELECT(kernel) (&::hvp::baseline::kernel)
#endif
