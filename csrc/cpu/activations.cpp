// Element-wise activations: see hvp/activations.h. Each output element is a function of the same element of
// the inputs, so chunks may go to any thread; their size is fixed so that an element always meets the same
// vector or tail code.
#include "hvp/activations.h"

#include "element.h"
#include "grains.h"
#include "parallel.h"
#include "simd_math.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kChunk = 1024;

template <class T>
struct Derivatives {
    T value, first, second;
};

// s = sigmoid(z), ds = s (1 - s), flip = 1 - 2 s, from one exponential that cannot overflow.
template <class T>
HVP_SIMD_INLINE void sigmoid_parts(T z, T* s, T* ds, T* flip) {
    const T e = simd::exp(-simd::abs(z));
    const T inverse = T(1) / (T(1) + e);
    *s = z < T(0) ? e * inverse : inverse;
    *ds = e * inverse * inverse;
    *flip = simd::copysign((T(1) - e) * inverse, -z);
}

struct Silu {
    template <class T>
    HVP_SIMD_INLINE Derivatives<T> at(T x) {
        T s, ds, flip;
        sigmoid_parts(x, &s, &ds, &flip);
        return {x * s, s + x * ds, ds * (T(2) + x * flip)};
    }
};

struct Gelu {
    template <class T>
    HVP_SIMD_INLINE Derivatives<T> at(T x) {
        T pdf, cdf;
        simd::normal_pdf_cdf(x, &pdf, &cdf);
        // Far in the tails the density is zero; the bound keeps x^2 from overflowing to 0 * inf.
        const T bounded = simd::abs(x) > T(64) ? T(64) : x;
        return {x * cdf, cdf + bounded * pdf, pdf * (T(2) - bounded * bounded)};
    }
};

// x sigmoid(2 k (x + c x^3)) equals x/2 (1 + tanh(k (x + c x^3))) and cancels nowhere.
struct GeluTanh {
    template <class T>
    HVP_SIMD_INLINE Derivatives<T> at(T x) {
        constexpr T k = T(1.59576912160573071176);  // 2 sqrt(2 / pi)
        constexpr T c = T(0.044715);
        T b = x > T(64) ? T(64) : x;  // the sigmoid is 0 or 1 beyond; avoids 0 * inf
        b = b < T(-64) ? T(-64) : b;
        const T b2 = b * b;
        T s, ds, flip;
        sigmoid_parts(k * b * (T(1) + c * b2), &s, &ds, &flip);
        const T dz = k * (T(1) + T(3) * c * b2);
        const T ddz = T(6) * k * c * b;
        return {x * s, s + b * ds * dz, ds * (T(2) * dz + b * (ddz + flip * dz * dz))};
    }
};

// Operands of one chunk; a missing input reads zeros, a missing output goes to a scratch chunk that stays in
// cache.
template <class T>
const T* input_chunk(Operand input, std::int64_t group, std::int64_t offset, const T* zeros) {
    if (input.data == nullptr) return zeros;
    return static_cast<const T*>(input.data) + group * input.batch_stride + offset;
}
template <class T>
T* output_chunk(void* output, std::int64_t group, std::int64_t size, std::int64_t offset, T* scratch) {
    return output == nullptr ? scratch : static_cast<T*>(output) + group * size + offset;
}

// Calls body(group, offset, count) for every chunk. The groups of a chunk follow each other, so that operands
// shared by the groups are read from memory once.
template <class Body>
void for_each_chunk(const ElementwiseShape& shape, const Body& body) {
    const std::int64_t chunks = (shape.size + kChunk - 1) / kChunk;
    const auto elements = static_cast<double>(shape.batch * shape.size);
    parallel_for(chunks, elements, grain::kActivation, [&](std::int64_t chunk) {
        const std::int64_t offset = chunk * kChunk;
        const std::int64_t count = shape.size - offset < kChunk ? shape.size - offset : kChunk;
        for (std::int64_t group = 0; group < shape.batch; ++group) body(group, offset, count);
    });
}

template <class Op, class T>
void forward(const ElementwiseShape& shape, Operand x, void* y) {
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        const T* xs = input_chunk<T>(x, group, offset, nullptr);
        T* ys = output_chunk<T>(y, group, shape.size, offset, nullptr);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) store(ys + i, Op::at(load(xs + i)).value);
    });
}

template <class Op, class T>
void backward(const ElementwiseShape& shape, Operand x, Operand g, void* dx) {
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        const T* xs = input_chunk<T>(x, group, offset, nullptr);
        const T* gs = input_chunk<T>(g, group, offset, nullptr);
        T* out = output_chunk<T>(dx, group, shape.size, offset, nullptr);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) store(out + i, load(gs + i) * Op::at(load(xs + i)).first);
    });
}

template <class Op, class T>
void double_backward(const ElementwiseShape& shape, Operand x, Operand g, Operand u, void* d_g, void* d_x) {
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        T scratch[kChunk];
        const T* xs = input_chunk<T>(x, group, offset, nullptr);
        const T* gs = input_chunk<T>(g, group, offset, nullptr);
        const T* us = input_chunk<T>(u, group, offset, nullptr);
        T* out_g = output_chunk<T>(d_g, group, shape.size, offset, scratch);
        T* out_x = output_chunk<T>(d_x, group, shape.size, offset, scratch);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            const auto f = Op::at(load(xs + i));
            const auto v = load(us + i);
            store(out_g + i, v * f.first);
            store(out_x + i, v * load(gs + i) * f.second);
        }
    });
}

template <class T>
void swiglu_forward_as(const ElementwiseShape& shape, Operand gate, Operand up, void* y) {
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        const T* as = input_chunk<T>(gate, group, offset, nullptr);
        const T* bs = input_chunk<T>(up, group, offset, nullptr);
        T* ys = output_chunk<T>(y, group, shape.size, offset, nullptr);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) store(ys + i, Silu::at(load(as + i)).value * load(bs + i));
    });
}

template <class T>
void swiglu_backward_as(const ElementwiseShape& shape, Operand gate, Operand up, Operand g, void* d_gate,
                        void* d_up) {
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        T scratch[kChunk];
        const T* as = input_chunk<T>(gate, group, offset, nullptr);
        const T* bs = input_chunk<T>(up, group, offset, nullptr);
        const T* gs = input_chunk<T>(g, group, offset, nullptr);
        T* out_a = output_chunk<T>(d_gate, group, shape.size, offset, scratch);
        T* out_b = output_chunk<T>(d_up, group, shape.size, offset, scratch);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            const auto f = Silu::at(load(as + i));
            const auto v = load(gs + i);
            store(out_a + i, v * load(bs + i) * f.first);
            store(out_b + i, v * f.value);
        }
    });
}

template <class T>
void swiglu_double_backward_as(const ElementwiseShape& shape, Operand gate, Operand up, Operand g,
                               Operand u_gate, Operand u_up, void* d_g, void* d_gate, void* d_up) {
    static const T zeros[kChunk] = {};
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t offset, std::int64_t count) {
        T scratch[kChunk];
        const T* as = input_chunk<T>(gate, group, offset, nullptr);
        const T* bs = input_chunk<T>(up, group, offset, nullptr);
        const T* gs = input_chunk<T>(g, group, offset, nullptr);
        const T* uas = input_chunk<T>(u_gate, group, offset, zeros);
        const T* ubs = input_chunk<T>(u_up, group, offset, zeros);
        T* out_g = output_chunk<T>(d_g, group, shape.size, offset, scratch);
        T* out_a = output_chunk<T>(d_gate, group, shape.size, offset, scratch);
        T* out_b = output_chunk<T>(d_up, group, shape.size, offset, scratch);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            const auto f = Silu::at(load(as + i));
            const auto v = load(gs + i);
            const auto ua = load(uas + i);
            const auto ub = load(ubs + i);
            const auto uab = ua * load(bs + i);
            store(out_g + i, uab * f.first + ub * f.value);
            store(out_a + i, v * (uab * f.second + ub * f.first));
            store(out_b + i, v * ua * f.first);
        }
    });
}

template <class Visitor>
void with_activation(Activation kind, const Visitor& visitor) {
    if (kind == Activation::gelu) return visitor(Gelu());
    if (kind == Activation::gelu_tanh) return visitor(GeluTanh());
    visitor(Silu());
}

}  // namespace

void activation_forward(Activation kind, const ElementwiseShape& shape, Operand x, void* y) {
    with_activation(kind, [&](auto op) {
        with_dtype(shape.type, [&](auto element) { forward<decltype(op), decltype(element)>(shape, x, y); });
    });
}

void activation_backward(Activation kind, const ElementwiseShape& shape, Operand x, Operand g, void* dx) {
    with_activation(kind, [&](auto op) {
        with_dtype(shape.type,
                   [&](auto element) { backward<decltype(op), decltype(element)>(shape, x, g, dx); });
    });
}

void activation_double_backward(Activation kind, const ElementwiseShape& shape, Operand x, Operand g,
                                Operand u, void* d_g, void* d_x) {
    with_activation(kind, [&](auto op) {
        with_dtype(shape.type, [&](auto element) {
            double_backward<decltype(op), decltype(element)>(shape, x, g, u, d_g, d_x);
        });
    });
}

void swiglu_forward(const ElementwiseShape& shape, Operand gate, Operand up, void* y) {
    with_dtype(shape.type, [&](auto element) { swiglu_forward_as<decltype(element)>(shape, gate, up, y); });
}

void swiglu_backward(const ElementwiseShape& shape, Operand gate, Operand up, Operand g, void* d_gate,
                     void* d_up) {
    with_dtype(shape.type, [&](auto element) {
        swiglu_backward_as<decltype(element)>(shape, gate, up, g, d_gate, d_up);
    });
}

void swiglu_double_backward(const ElementwiseShape& shape, Operand gate, Operand up, Operand g,
                            Operand u_gate, Operand u_up, void* d_g, void* d_gate, void* d_up) {
    with_dtype(shape.type, [&](auto element) {
        swiglu_double_backward_as<decltype(element)>(shape, gate, up, g, u_gate, u_up, d_g, d_gate, d_up);
    });
}

}  // namespace HVP_ISA
}  // namespace hvp
