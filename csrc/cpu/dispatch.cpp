// Which instruction set the kernels use: what the CPU has, lowered on request by HVP_ENGINE_ISA.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace hvp {
namespace {

Isa widest() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
    return Isa::baseline;
#endif
}

const char* name_of(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

Isa choose() {
    const Isa limit = widest();
    const char* wish = std::getenv("HVP_ENGINE_ISA");
    if (wish == nullptr || *wish == '\0') return limit;
    for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        if (std::string(wish) != name_of(isa)) continue;
        if (isa <= limit) return isa;
        throw std::invalid_argument("HVP_ENGINE_ISA=" + std::string(wish) +
                                    ", but this CPU supports at most " + name_of(limit) +
                                    "; unset HVP_ENGINE_ISA or name a lower one.");
    }
    throw std::invalid_argument("HVP_ENGINE_ISA=" + std::string(wish) +
                                " is not an instruction set; use baseline, avx2 or avx512, or unset it.");
}

}  // namespace

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}

const char* isa_name() { return name_of(isa()); }

}  // namespace hvp
