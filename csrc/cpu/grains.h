// How much work of each kernel is worth a thread: about 25 microseconds on one thread. Measured in fp32 with
// AVX-512 by benchmarks/grain_sizes.py, whose table names the kernel beside each constant.
#pragma once

namespace hvp {
namespace grain {

// Elements of the input, or of the logits.
constexpr double kActivation = 16384;
constexpr double kNormalize = 32768;
constexpr double kNormalizeSums = 131072;  // of partial rows, which are only added
constexpr double kSoftmax = 32768;
constexpr double kCrossEntropy = 32768;

constexpr double kEmbedding = 65536;  // elements of the gradients and of the table
constexpr double kPairs = 65536;      // products of pairs, entries of covariances
constexpr double kMatvec = 65536;     // entries of packed matrices, each with each vector
constexpr double kTridiagonal = 320;  // squared sizes of groups of matrices

// Multiplications of the two products of the forward pass; the others have more products.
constexpr double kAttentionForward = 5e5;
constexpr double kAttentionBackward = 2e5;
constexpr double kAttentionSecond = 1e5;
constexpr double kAttentionSums = 65536;  // elements of partial sums

constexpr double kReorthogonalize = 131072;     // elements of the basis, each as often as it is read
constexpr double kReorthogonalizeSums = 32768;  // partial dots
constexpr double kFingerprint = 4 << 20;        // bytes
constexpr double kRead = 262144;                // floats

}  // namespace grain
}  // namespace hvp
