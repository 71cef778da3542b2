// param_distance on a GPU. Each block sums a fixed chunk in float64; then every block of a second
// kernel adds up all partial sums, in one order, and writes the gradients of its chunk, whose
// entries the L2 cache still holds for the usual sizes. No atomics: a repeated call gives the same
// bits.
#include "param_distance.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "device.cuh"

namespace iadd::param_distance {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 256;
constexpr int kPack = 4;
constexpr int64_t kStep = kThreads * kPack;
// Each block of the second kernel reads all partial sums: their number stays small.
constexpr int64_t kMaximumChunks = 1024;

struct Partial {
  double numerator, denominator;
};

template <class T>
struct Vectors {
  const T *theta, *start, *target, *weight;
  int64_t count, chunk;
  bool weighted_normaliser;
};

template <class T>
struct alignas(kPack * sizeof(T)) Pack {
  T lane[kPack];
};

// Reads past the end as zero, which adds nothing to either sum.
template <bool kAligned, class T>
__device__ __forceinline__ void load(const T* from, int64_t i, int64_t count, float (&to)[kPack]) {
  if (kAligned && i + kPack <= count) {
    Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from + i);
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) to[lane] = widened(pack.lane[lane]);
  } else {
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) {
      to[lane] = i + lane < count ? widened(from[i + lane]) : 0.0f;
    }
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ void store(
    T* to, int64_t i, int64_t count, const float (&from)[kPack]) {
  if (kAligned && i + kPack <= count) {
    Pack<T> pack;
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) pack.lane[lane] = narrowed<T>(from[lane]);
    *reinterpret_cast<Pack<T>*>(to + i) = pack;
  } else {
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) {
      if (i + lane < count) to[i + lane] = narrowed<T>(from[lane]);
    }
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ void load_entries(
    const Vectors<T>& vectors, int64_t i, Entry<float> (&entries)[kPack]) {
  float theta[kPack], start[kPack], target[kPack], weight[kPack];
  load<kAligned>(vectors.theta, i, vectors.count, theta);
  load<kAligned>(vectors.start, i, vectors.count, start);
  load<kAligned>(vectors.target, i, vectors.count, target);
  if (vectors.weight) load<kAligned>(vectors.weight, i, vectors.count, weight);
#pragma unroll
  for (int lane = 0; lane < kPack; ++lane) {
    entries[lane] = entry(
        theta[lane], start[lane], target[lane], vectors.weight ? weight[lane] : 1.0f,
        vectors.weight && vectors.weighted_normaliser);
  }
}

template <class T>
__device__ __forceinline__ int64_t chunk_end(const Vectors<T>& vectors) {
  int64_t end = (blockIdx.x + int64_t{1}) * vectors.chunk;
  return end < vectors.count ? end : vectors.count;
}

// A thread's share does not depend on the alignment, so neither do the sums.
template <bool kAligned, class T>
__global__ void __launch_bounds__(kThreads) chunk_sums(Vectors<T> vectors, Partial* partials) {
  __shared__ double warp_sums[2][32];
  double numerator = 0, denominator = 0;
  int64_t end = chunk_end(vectors);
  for (int64_t i = blockIdx.x * vectors.chunk + kPack * threadIdx.x; i < end; i += kStep) {
    Entry<float> entries[kPack];
    load_entries<kAligned>(vectors, i, entries);
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) {
      numerator += squared(entries[lane].scaled);
      denominator += squared(entries[lane].scaled_span);
    }
  }
  numerator = block_sum(numerator, warp_sums[0]);
  denominator = block_sum(denominator, warp_sums[1]);
  if (threadIdx.x == 0) partials[blockIdx.x] = {numerator, denominator};
}

__device__ __forceinline__ Sums<float> all_sums(const Partial* partials, int chunks) {
  __shared__ double warp_sums[2][32];
  double numerator = 0, denominator = 0;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    numerator += partials[chunk].numerator;
    denominator += partials[chunk].denominator;
  }
  numerator = block_sum(numerator, warp_sums[0]);
  denominator = block_sum(denominator, warp_sums[1]);
  return sums<float>(numerator, denominator);
}

__global__ void __launch_bounds__(kThreads)
    write_loss(const Partial* partials, int chunks, float* loss) {
  Sums<float> sums = all_sums(partials, chunks);
  if (threadIdx.x == 0) *loss = sums.loss;
}

template <bool kAligned, class T>
__global__ void __launch_bounds__(kThreads) write_gradients(
    Vectors<T> vectors, const Partial* partials, int chunks, float* loss, T* d_theta,
    T* d_weight) {
  Sums<float> sums = all_sums(partials, chunks);
  if (blockIdx.x == 0 && threadIdx.x == 0) *loss = sums.loss;
  int64_t end = chunk_end(vectors);
  for (int64_t i = blockIdx.x * vectors.chunk + kPack * threadIdx.x; i < end; i += kStep) {
    Entry<float> entries[kPack];
    load_entries<kAligned>(vectors, i, entries);
    float gradient[kPack];
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) gradient[lane] = theta_gradient(entries[lane], sums);
    store<kAligned>(d_theta, i, vectors.count, gradient);
    if (!d_weight) continue;
#pragma unroll
    for (int lane = 0; lane < kPack; ++lane) {
      gradient[lane] = weight_gradient(entries[lane], sums, vectors.weighted_normaliser);
    }
    store<kAligned>(d_weight, i, vectors.count, gradient);
  }
}

template <class T>
bool aligned(std::initializer_list<const T*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T>) == 0;
  });
}

template <bool kAligned, class T>
void launch(
    const Vectors<T>& vectors, int chunks, Partial* partials, float* loss, T* d_theta,
    T* d_weight, cudaStream_t stream) {
  if (chunks > 0) {
    chunk_sums<kAligned><<<chunks, kThreads, 0, stream>>>(vectors, partials);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (d_theta) {
    write_gradients<kAligned><<<std::max(1, chunks), kThreads, 0, stream>>>(
        vectors, partials, chunks, loss, d_theta, d_weight);
  } else {
    write_loss<<<1, kThreads, 0, stream>>>(partials, chunks, loss);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Inputs {
  Tensor theta, start, target;
  OptionalTensor weight;
  bool weighted_normaliser;
};

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* written_or_null(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

template <class T>
void compute(
    const Inputs& in, const Tensor& loss, const OptionalTensor& d_theta,
    const OptionalTensor& d_weight) {
  int64_t count = in.theta.numel();
  int64_t share = (count + kMaximumChunks - 1) / kMaximumChunks;
  int64_t chunk = std::max<int64_t>(1, (share + kStep - 1) / kStep) * kStep;
  int chunks = static_cast<int>((count + chunk - 1) / chunk);
  Vectors<T> vectors{
      read<T>(in.theta), read<T>(in.start), read<T>(in.target),
      in.weight ? read<T>(*in.weight) : nullptr, count, chunk, in.weighted_normaliser};
  T *to_theta = written_or_null<T>(d_theta), *to_weight = written_or_null<T>(d_weight);
  Tensor partials = torch::stable::new_empty(
      in.theta, {2 * std::max(1, chunks)}, torch::headeronly::ScalarType::Double);
  auto* partial = static_cast<Partial*>(partials.mutable_data_ptr());
  float* to_loss = loss.mutable_data_ptr<float>();
  cudaStream_t stream = current_stream(in.theta.get_device_index());
  if (aligned<T>(
          {vectors.theta, vectors.start, vectors.target, vectors.weight, to_theta, to_weight})) {
    launch<true>(vectors, chunks, partial, to_loss, to_theta, to_weight, stream);
  } else {
    launch<false>(vectors, chunks, partial, to_loss, to_theta, to_weight, stream);
  }
}

void distance_and_gradients(
    Tensor theta, Tensor start, Tensor target, OptionalTensor weight, bool weighted_normaliser,
    Tensor loss, OptionalTensor d_theta, OptionalTensor d_weight) {
  // A direct call reaches this without Python's checks.
  Check check("param_distance", "theta", theta, ScalarType::Float, ScalarType::BFloat16);
  check.dimensions("theta", theta, 1);
  int64_t count = theta.size(0);
  check.demand(weight || !d_weight, "d_weight", "there is no weight");
  check.reads("theta", theta, {count});
  check.reads("start", start, {count});
  check.reads("target", target, {count});
  check.reads("weight", weight, {count});
  check.writes("loss", loss, {}, Layout::kContiguous, ScalarType::Float);
  check.writes("d_theta", d_theta, {count});
  check.writes("d_weight", d_weight, {count});
  torch::stable::accelerator::DeviceGuard guard(theta.get_device_index());
  Inputs in{theta, start, target, weight, weighted_normaliser};
  if (check.dtype() == ScalarType::Float) {
    compute<float>(in, loss, d_theta, d_weight);
  } else {
    compute<__nv_bfloat16>(in, loss, d_theta, d_weight);
  }
}

void gradients_boxed(
    Tensor theta, Tensor start, Tensor target, OptionalTensor weight, bool weighted_normaliser,
    Tensor loss, Tensor d_theta, OptionalTensor d_weight) {
  distance_and_gradients(
      theta, start, target, weight, weighted_normaliser, loss, d_theta, d_weight);
}

void distance_boxed(
    Tensor theta, Tensor start, Tensor target, OptionalTensor weight, bool weighted_normaliser,
    Tensor loss) {
  distance_and_gradients(theta, start, target, weight, weighted_normaliser, loss, {}, {});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CUDA, library) {
  library.impl("param_distance", TORCH_BOX(&distance_boxed));
  library.impl("param_distance_gradients", TORCH_BOX(&gradients_boxed));
}

}  // namespace iadd::param_distance
