// Each table row has one owner that adds its tokens in their sorted order: no atomics, the same bits on any
// threads.
#include "hvp/embedding.h"

#include "element.h"
#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kTableRows = 64;  // per unit of work
constexpr std::int64_t kColumns = 512;   // columns accumulated at once, on the stack

std::int64_t first_not_below(const std::int64_t* sorted, std::int64_t size, std::int64_t value) {
    std::int64_t low = 0;
    while (low < size) {
        const std::int64_t middle = low + (size - low) / 2;
        if (sorted[middle] < value)
            low = middle + 1;
        else
            size = middle;
    }
    return low;
}

template <class T>
void sum_tokens(const std::int64_t* order, std::int64_t tokens, const T* grad, std::int64_t columns, T* out) {
    Acc<T> sum[kColumns];
    for (std::int64_t begin = 0; begin < columns; begin += kColumns) {
        const std::int64_t width = columns - begin < kColumns ? columns - begin : kColumns;
        for (std::int64_t c = 0; c < width; ++c) sum[c] = 0;
        for (std::int64_t i = 0; i < tokens; ++i) {
            const T* row = grad + order[i] * columns + begin;
#pragma omp simd
            for (std::int64_t c = 0; c < width; ++c) sum[c] += load(row + c);
        }
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) store(out + begin + c, sum[c]);
    }
}

template <class T>
void backward(const std::int64_t* order, const std::int64_t* sorted_rows, std::int64_t tokens, const T* grad,
              std::int64_t table_rows, std::int64_t columns, T* table) {
    const std::int64_t units = (table_rows + kTableRows - 1) / kTableRows;
    const auto elements = static_cast<double>((table_rows + tokens) * columns);
    parallel_for(units, elements, grain::kEmbedding, [&](std::int64_t unit) {
        const std::int64_t last = unit + 1 < units ? (unit + 1) * kTableRows : table_rows;
        std::int64_t i = first_not_below(sorted_rows, tokens, unit * kTableRows);
        for (std::int64_t row = unit * kTableRows; row < last; ++row) {
            const std::int64_t begin = i;
            while (i < tokens && sorted_rows[i] == row) ++i;
            sum_tokens(order + begin, i - begin, grad, columns, table + row * columns);
        }
    });
}

}  // namespace

void embedding_backward(Dtype dtype, const std::int64_t* order, const std::int64_t* sorted_rows,
                        std::int64_t tokens, const void* grad, std::int64_t table_rows, std::int64_t columns,
                        void* table) {
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        backward<T>(order, sorted_rows, tokens, static_cast<const T*>(grad), table_rows, columns,
                    static_cast<T*>(table));
    });
}

}  // namespace HVP_ISA
}  // namespace hvp
