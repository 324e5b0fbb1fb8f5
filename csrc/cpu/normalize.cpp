// Normalisation of rows: see hvp/normalize.h. With P(z) = z - mean(z) - xhat mean(z xhat) (RMS: no mean(z)),
//   dx = rstd P(w g),  dw = sum g xhat,  db = sum g,
// and, for cotangents u, u_w, u_b of these,
//   d_g = rstd w P(u) + u_w xhat + u_b,   d_w = sum rstd g P(u),
//   d_x = -rstd^2 [mean(wg xhat) P(u) + mean(u xhat) P(wg) + xhat (mean(u wg) - mean(u) mean(wg)
//         - mean(u xhat) mean(wg xhat))] + rstd P(u_w g).
// A row is read from memory once and stays in cache for the passes that follow.
#include "hvp/normalize.h"

#include "element.h"
#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kBlock = 512;  // elements added in the compute type before their sum goes to double

// What one element adds to up to five sums. By value: an array would keep the loop from being vectorised.
template <class A>
struct Terms {
    A a, b, c, d, e;
};

// Means of N quantities over a row; term(j) gives those of element j. The sums beyond N must not be touched:
// the compiler may not drop the addition of a zero.
template <int N, class A, class Term>
HVP_ELEMENT_INLINE void row_means(std::int64_t size, A* means, const Term& term) {
    double total[5] = {};
    for (std::int64_t start = 0; start < size; start += kBlock) {
        const std::int64_t end = size - start < kBlock ? size : start + kBlock;
        A s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4)
        for (std::int64_t j = start; j < end; ++j) {
            const Terms<A> t = term(j);
            s0 += t.a;
            if (N > 1) s1 += t.b;
            if (N > 2) s2 += t.c;
            if (N > 3) s3 += t.d;
            if (N > 4) s4 += t.e;
        }
        const A sums[5] = {s0, s1, s2, s3, s4};
        for (int k = 0; k < N; ++k) total[k] += double(sums[k]);
    }
    for (int k = 0; k < N; ++k) means[k] = A(total[k] / double(size));
}

// Addresses of one row of the inputs.
template <class T, class W>
struct Row {
    using A = Acc<T>;
    const T* x;
    const T* g;
    const W* w;
    A mean, rstd;

    inline __attribute__((always_inline)) A xhat(std::int64_t j) const { return (load(x + j) - mean) * rstd; }
    inline __attribute__((always_inline)) A wg(std::int64_t j) const { return load(g + j) * A(load(w + j)); }
};

template <class T>
HVP_ELEMENT_INLINE const T* row_of(Operand operand, std::int64_t group, std::int64_t row, std::int64_t size) {
    return static_cast<const T*>(operand.data) + group * operand.batch_stride + row * size;
}

template <class T, class W>
HVP_ELEMENT_INLINE Row<T, W> make_row(const NormalizeShape& shape, const NormalizeInputs& in,
                                      std::int64_t group, std::int64_t row) {
    const auto* statistics = row_of<Acc<T>>(in.statistics, group, row, 2);
    return {row_of<T>(in.x, group, row, shape.size), row_of<T>(in.g, group, row, shape.size),
            row_of<W>(in.w, group, 0, shape.size), statistics[0], statistics[1]};
}

// Calls body(group, chunk, first row, last row). The groups of a chunk follow each other, so that rows shared
// by the groups are read from memory once.
template <class Body>
void for_each_chunk(const NormalizeShape& shape, const Body& body) {
    const std::int64_t step = normalize_rows_per_chunk(shape.rows);
    const std::int64_t chunks = normalize_chunks(shape.rows);
    const auto elements = static_cast<double>(shape.batch * shape.rows * shape.size);
    parallel_for(chunks, elements, grain::kNormalize, [&](std::int64_t chunk) {
        const std::int64_t first = chunk * step;
        const std::int64_t last = shape.rows - first < step ? shape.rows : first + step;
        for (std::int64_t group = 0; group < shape.batch; ++group) body(group, chunk, first, last);
    });
}

template <class A>
HVP_ELEMENT_INLINE void clear(A* row, std::int64_t size) {
#pragma omp simd
    for (std::int64_t j = 0; j < size; ++j) row[j] = A(0);
}

// out = sum over chunks of the partial rows, for each group.
template <class A, class W>
void reduce_chunks(const NormalizeShape& shape, const A* partial, std::int64_t group_stride, void* out) {
    const std::int64_t chunks = normalize_chunks(shape.rows);
    const std::int64_t blocks = (shape.size + kBlock - 1) / kBlock;
    const auto elements = static_cast<double>(shape.batch * chunks * shape.size);
    parallel_for(shape.batch * blocks, elements, grain::kNormalizeSums, [&](std::int64_t task) {
        const std::int64_t group = task / blocks, start = task % blocks * kBlock;
        const std::int64_t count = shape.size - start < kBlock ? shape.size - start : kBlock;
        double sum[kBlock] = {};
        const A* row = partial + group * group_stride + start;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk, row += shape.size) {
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j) sum[j] += double(row[j]);
        }
        W* target = static_cast<W*>(out) + group * shape.size + start;
#pragma omp simd
        for (std::int64_t j = 0; j < count; ++j) store(target + j, A(sum[j]));
    });
}

// Mean and variance in two passes; the second corrects the rounding of the mean.
template <class T, class A = Acc<T>>
HVP_ELEMENT_INLINE void row_statistics(bool centered, const T* x, std::int64_t size, double eps,
                                       A* statistics) {
    A mean = 0;
    A moments[2];
    if (centered)
        row_means<1>(size, &mean, [&](std::int64_t j) { return Terms<A>{load(x + j), 0, 0, 0, 0}; });
    row_means<2>(size, moments, [&](std::int64_t j) {
        const A d = load(x + j) - mean;
        return Terms<A>{d, d * d, 0, 0, 0};
    });
    const double shift = centered ? double(moments[0]) : 0.0;
    statistics[0] = A(double(mean) + shift);
    statistics[1] = A(1.0 / __builtin_sqrt(double(moments[1]) - shift * shift + eps));
}

template <class T, class W>
void forward(const NormalizeShape& shape, double eps, Operand x, Operand w, Operand b, void* y,
             void* statistics) {
    using A = Acc<T>;
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t, std::int64_t first, std::int64_t last) {
        const W* ws = row_of<W>(w, group, 0, shape.size);
        const W* bs = row_of<W>(b, group, 0, shape.size);
        for (std::int64_t row = first; row < last; ++row) {
            const T* xs = row_of<T>(x, group, row, shape.size);
            const std::int64_t index = group * shape.rows + row;
            A* of_row = static_cast<A*>(statistics) + 2 * index;
            row_statistics(shape.centered, xs, shape.size, eps, of_row);
            const A mean = of_row[0], rstd = of_row[1];
            T* ys = static_cast<T*>(y) + index * shape.size;
#pragma omp simd
            for (std::int64_t j = 0; j < shape.size; ++j) {
                store(ys + j, (load(xs + j) - mean) * rstd * A(load(ws + j)) + A(load(bs + j)));
            }
        }
    });
}

template <class T, class W>
HVP_ELEMENT_INLINE void backward_row(bool centered, const Row<T, W>& r, std::int64_t size, T* dx) {
    using A = Acc<T>;
    A s[2];
    row_means<2>(size, s, [&](std::int64_t j) {
        const A wg = r.wg(j);
        return Terms<A>{wg, wg * r.xhat(j), 0, 0, 0};
    });
    const A mean_wg = centered ? s[0] : A(0);
#pragma omp simd
    for (std::int64_t j = 0; j < size; ++j) store(dx + j, r.rstd * (r.wg(j) - mean_wg - r.xhat(j) * s[1]));
}

template <class T, class W, class A>
HVP_ELEMENT_INLINE void add_parameter_gradients(const Row<T, W>& r, std::int64_t size, A* dw, A* db) {
#pragma omp simd
    for (std::int64_t j = 0; j < size; ++j) {
        const A g = load(r.g + j);
        dw[j] += g * r.xhat(j);
        db[j] += g;
    }
}

template <class T, class W>
void backward(const NormalizeShape& shape, const NormalizeInputs& in, void* dx, void* dw, void* db,
              void* workspace) {
    using A = Acc<T>;
    const std::int64_t plane = normalize_chunks(shape.rows) * shape.size;
    A* partial = static_cast<A*>(workspace);
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t chunk, std::int64_t first, std::int64_t last) {
        A* dw_part = partial + 2 * group * plane + chunk * shape.size;
        A* db_part = dw_part + plane;
        if (partial != nullptr) {
            clear(dw_part, shape.size);
            clear(db_part, shape.size);
        }
        for (std::int64_t row = first; row < last; ++row) {
            const Row<T, W> r = make_row<T, W>(shape, in, group, row);
            if (dx != nullptr) {
                backward_row(shape.centered, r, shape.size,
                             static_cast<T*>(dx) + (group * shape.rows + row) * shape.size);
            }
            if (partial != nullptr) add_parameter_gradients(r, shape.size, dw_part, db_part);
        }
    });
    if (dw != nullptr) reduce_chunks<A, W>(shape, partial, 2 * plane, dw);
    if (db != nullptr) reduce_chunks<A, W>(shape, partial + plane, 2 * plane, db);
}

// Row of the cotangents, and the means that the gradients need.
template <class T, class W>
struct Cotangents {
    using A = Acc<T>;
    const T* u;
    const W* u_w;
    const W* u_b;
    A mean_u, u_xhat, mean_wg, wg_xhat, u_wg;
    A mean_q, q_xhat;  // of q = u_w g
};

template <bool Parameters, class T, class W>
HVP_ELEMENT_INLINE void take_means(bool centered, const Row<T, W>& r, std::int64_t size,
                                   Cotangents<T, W>* c) {
    using A = Acc<T>;
    A s[5];
    const T* us = c->u;
    row_means<5>(size, s, [&](std::int64_t j) {
        const A u = load(us + j), wg = r.wg(j), xhat = r.xhat(j);
        return Terms<A>{u, u * xhat, wg, wg * xhat, u * wg};
    });
    c->mean_u = centered ? s[0] : A(0);
    c->u_xhat = s[1];
    c->mean_wg = centered ? s[2] : A(0);
    c->wg_xhat = s[3];
    c->u_wg = s[4];
    c->mean_q = c->q_xhat = A(0);
    if (!Parameters) return;
    A q[2];
    const W* u_ws = c->u_w;
    row_means<2>(size, q, [&](std::int64_t j) {
        const A q = A(load(u_ws + j)) * load(r.g + j);
        return Terms<A>{q, q * r.xhat(j), 0, 0, 0};
    });
    c->mean_q = centered ? q[0] : A(0);
    c->q_xhat = q[1];
}

template <bool Parameters, bool NeedX, class T, class W>
HVP_ELEMENT_INLINE void double_backward_row(const Row<T, W>& r, const Cotangents<T, W>& c, std::int64_t size,
                                            T* d_g, T* d_x) {
    using A = Acc<T>;
    const A r2 = r.rstd * r.rstd;
    const A along_xhat = c.u_wg - c.mean_u * c.mean_wg - c.u_xhat * c.wg_xhat;
#pragma omp simd
    for (std::int64_t j = 0; j < size; ++j) {
        const A xhat = r.xhat(j), w = A(load(r.w + j)), g = load(r.g + j);
        const A projected = load(c.u + j) - c.mean_u - xhat * c.u_xhat;
        A to_g = r.rstd * w * projected;
        if (Parameters) to_g += A(load(c.u_w + j)) * xhat + A(load(c.u_b + j));
        store(d_g + j, to_g);
        if (NeedX) {
            const A projected_wg = w * g - c.mean_wg - xhat * c.wg_xhat;
            A to_x = -r2 * (c.wg_xhat * projected + c.u_xhat * projected_wg + xhat * along_xhat);
            if (Parameters) to_x += r.rstd * (A(load(c.u_w + j)) * g - c.mean_q - xhat * c.q_xhat);
            store(d_x + j, to_x);
        }
    }
}

template <class T, class W, class A>
HVP_ELEMENT_INLINE void add_weight_gradient(const Row<T, W>& r, const Cotangents<T, W>& c, std::int64_t size,
                                            A* d_w) {
#pragma omp simd
    for (std::int64_t j = 0; j < size; ++j) {
        d_w[j] += r.rstd * load(r.g + j) * (load(c.u + j) - c.mean_u - r.xhat(j) * c.u_xhat);
    }
}

template <bool Parameters, bool NeedX, class T, class W>
void double_backward(const NormalizeShape& shape, const NormalizeInputs& in, Operand u, Operand u_w,
                     Operand u_b, void* d_g, void* d_x, void* d_w, void* workspace) {
    using A = Acc<T>;
    const std::int64_t plane = normalize_chunks(shape.rows) * shape.size;
    A* partial = static_cast<A*>(workspace);
    for_each_chunk(shape, [&](std::int64_t group, std::int64_t chunk, std::int64_t first, std::int64_t last) {
        A* part = partial + group * plane + chunk * shape.size;
        if (partial != nullptr) clear(part, shape.size);
        for (std::int64_t row = first; row < last; ++row) {
            const Row<T, W> r = make_row<T, W>(shape, in, group, row);
            Cotangents<T, W> c;
            c.u = row_of<T>(u, group, row, shape.size);
            c.u_w = Parameters ? row_of<W>(u_w, group, 0, shape.size) : nullptr;
            c.u_b = Parameters ? row_of<W>(u_b, group, 0, shape.size) : nullptr;
            take_means<Parameters>(shape.centered, r, shape.size, &c);
            const std::int64_t offset = (group * shape.rows + row) * shape.size;
            double_backward_row<Parameters, NeedX>(r, c, shape.size, static_cast<T*>(d_g) + offset,
                                                   NeedX ? static_cast<T*>(d_x) + offset : nullptr);
            if (partial != nullptr) add_weight_gradient(r, c, shape.size, part);
        }
    });
    if (d_w != nullptr) reduce_chunks<A, W>(shape, partial, plane, d_w);
}

template <bool Value>
struct Flag {
    static constexpr bool value = Value;
};

// Calls visitor(T(), W()) with the element types named at run time.
template <class Visitor>
void with_types(const NormalizeShape& shape, const Visitor& visitor) {
    if (shape.type == Dtype::float64) return visitor(double(), double());
    if (shape.type == Dtype::float32) return visitor(float(), float());
    if (shape.parameter_type == Dtype::float32) return visitor(Bf16(), float());
    visitor(Bf16(), Bf16());
}

template <class Visitor>
void with_flag(bool flag, const Visitor& visitor) {
    if (flag) return visitor(Flag<true>());
    visitor(Flag<false>());
}

}  // namespace

void normalize_forward(const NormalizeShape& shape, double eps, Operand x, Operand w, Operand b, void* y,
                       void* statistics) {
    with_types(shape, [&](auto t, auto p) {
        forward<decltype(t), decltype(p)>(shape, eps, x, w, b, y, statistics);
    });
}

void normalize_backward(const NormalizeShape& shape, const NormalizeInputs& in, void* dx, void* dw, void* db,
                        void* workspace) {
    with_types(shape,
               [&](auto t, auto p) { backward<decltype(t), decltype(p)>(shape, in, dx, dw, db, workspace); });
}

void normalize_double_backward(const NormalizeShape& shape, const NormalizeInputs& in, Operand u, Operand u_w,
                               Operand u_b, void* d_g, void* d_x, void* d_w, void* workspace) {
    with_flag(u_w.data != nullptr, [&](auto parameters) {
        with_flag(d_x != nullptr, [&](auto need_x) {
            with_types(shape, [&](auto t, auto p) {
                double_backward<decltype(parameters)::value, decltype(need_x)::value, decltype(t),
                                decltype(p)>(shape, in, u, u_w, u_b, d_g, d_x, d_w, workspace);
            });
        });
    });
}

}  // namespace HVP_ISA
}  // namespace hvp
