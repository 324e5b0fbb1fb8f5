// Runs one launcher on arrays from a file and writes all arrays back: harness KERNEL INPUT OUTPUT.
// A file is a sequence of arrays: bytes to skip before it (to misalign it), its size in bytes, its bytes.
// Every array is an allocation of its own, of exactly its size, so that AddressSanitizer sees the first byte
// out of bounds.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "hvp/cuda/lanczos_step.h"
#include "hvp/cuda/reorthogonalize.h"
#include "hvp/cuda/tridiagonal.h"

namespace {

using hvp::cuda::Queue;

struct Array {
    std::int64_t lead = 0, bytes = 0;
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};

    template <typename T>
    T* at() const {
        return bytes == 0 ? nullptr : reinterpret_cast<T*>(memory.get() + lead);
    }
};

std::vector<Array> read_arrays(const char* path) {
    std::vector<Array> arrays;
    std::ifstream file(path, std::ios::binary);
    for (std::int64_t head[2]; file.read(reinterpret_cast<char*>(head), sizeof head);) {
        Array a;
        a.lead = head[0];
        a.bytes = head[1];
        a.memory.reset(static_cast<char*>(std::malloc(static_cast<std::size_t>(a.lead + a.bytes))));
        file.read(a.memory.get() + a.lead, a.bytes);
        arrays.push_back(std::move(a));
    }
    return arrays;
}

void write_arrays(const std::vector<Array>& arrays, const char* path) {
    std::ofstream file(path, std::ios::binary);
    for (const Array& a : arrays) file.write(a.memory.get() + a.lead, a.bytes);
}

// Memory of exactly this size, full of NaN.
std::unique_ptr<char[]> workspace(std::int64_t bytes) {
    std::unique_ptr<char[]> memory(new char[static_cast<std::size_t>(bytes)]);
    std::memset(memory.get(), 0xff, static_cast<std::size_t>(bytes));
    return memory;
}

const char* reorthogonalize(const std::vector<Array>& a) {
    const std::int64_t* p = a[0].at<std::int64_t>();
    const std::int64_t num = p[0];
    std::vector<hvp::ReorthogonalizeStream> streams;
    for (std::int64_t s = 0; s < num; ++s) {
        const std::int64_t* f = p + 3 + 5 * s;
        const auto i = static_cast<std::size_t>(5 + 2 * s);
        streams.push_back({a[i].at<void>(), a[i + 1].at<void>(), f[0], f[1], f[2],
                           static_cast<hvp::Dtype>(f[3]), static_cast<hvp::Dtype>(f[4])});
    }
    std::vector<hvp::cuda::ProjectionEntry> entries(streams.size());
    const auto plan = hvp::cuda::plan_projection(streams.data(), num, entries.data());
    const auto memory = workspace(plan.workspace_bytes);
    const double* rule = a[4].at<double>();
    return hvp::cuda::reorthogonalize(
        plan, {p[2], rule[0], rule[1]},
        {entries.data(), a[1].at<double>(), p[1], a[2].at<double>(), a[3].at<double>(), memory.get()},
        Queue{0, nullptr});
}

const char* record_step(const std::vector<Array>& a) {
    const std::int64_t* p = a[0].at<std::int64_t>();
    const std::int64_t num = p[0];
    std::vector<hvp::cuda::RecordEntry> entries;
    for (std::int64_t s = 0; s < num; ++s) {
        const std::int64_t* f = p + 4 + 5 * s;
        const auto i = static_cast<std::size_t>(11 + 3 * s);
        entries.push_back({a[i].at<void>(), a[i + 1].at<void>(), a[i + 2].at<void>(), f[0], f[1], f[2], 0,
                           static_cast<hvp::Dtype>(f[3]), static_cast<hvp::Dtype>(f[4])});
    }
    const std::int64_t tasks = hvp::cuda::plan_record(entries.data(), num);
    return hvp::cuda::record_step({entries.data(), num, tasks, a[2].at<double>(), p[1], a[3].at<double>(),
                                   a[4].at<double>(), p[2], *a[1].at<double>()},
                                  {a[5].at<double>(), a[6].at<double>(), p[3], a[7].at<double>(),
                                   a[8].at<double>(), a[9].at<std::int64_t>(), a[10].at<bool>()},
                                  Queue{0, nullptr});
}

const char* tridiagonal_quadrature(const std::vector<Array>& a) {
    const std::int64_t* p = a[0].at<std::int64_t>();
    const auto memory = workspace(hvp::cuda::tridiagonal_workspace_bytes(p[0], p[1]));
    return hvp::cuda::tridiagonal_quadrature(
        p[0], p[1],
        {a[1].at<double>(), a[2].at<double>(), a[3].at<std::int64_t>(), a[4].at<double>(), a[5].at<double>(),
         a[6].at<std::int64_t>(), memory.get()},
        Queue{0, nullptr});
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const std::string kernel = argv[1];
    const std::vector<Array> arrays = read_arrays(argv[2]);
    const char* error = kernel == "reorthogonalize" ? reorthogonalize(arrays)
                        : kernel == "record_step"   ? record_step(arrays)
                                                    : tridiagonal_quadrature(arrays);
    if (error != nullptr) {
        std::fprintf(stderr, "%s\n", error);
        return 4;
    }
    write_arrays(arrays, argv[3]);
    return 0;
}
