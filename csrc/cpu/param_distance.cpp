// param_distance on the CPU: fixed chunks give float64 partial sums, added up in the chunks' order
// whatever the number of threads; the gradients are a second sweep over the same chunks.
#include "param_distance.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "clones.h"

namespace iadd::param_distance {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kChunk = 4096;
constexpr int64_t kChunksPerThread = 8;
constexpr int kLanes = 16;

struct Partial {
  double numerator, denominator;
};

template <class T>
struct Vectors {
  const T *theta, *start, *target, *weight;
  int64_t count;
  bool weighted_normaliser;

  template <bool kWeighted>
  Entry<T> at(int64_t i, bool weighted) const {
    return entry(theta[i], start[i], target[i], kWeighted ? weight[i] : T(1), weighted);
  }
};

inline double total(const double (&lanes)[kLanes]) {
  double part[kLanes];
  std::copy_n(lanes, kLanes, part);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  }
  return part[0];
}

template <bool kWeighted, bool kWeightedNormaliser, class T>
inline Partial chunk_sums(const Vectors<T>& vectors, int64_t begin, int64_t end) {
  double numerator[kLanes] = {}, denominator[kLanes] = {};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      auto entry = vectors.template at<kWeighted>(i + lane, kWeightedNormaliser);
      numerator[lane] += squared(entry.scaled);
      denominator[lane] += squared(entry.scaled_span);
    }
  }
  for (int lane = 0; i < end; ++i, ++lane) {
    auto entry = vectors.template at<kWeighted>(i, kWeightedNormaliser);
    numerator[lane] += squared(entry.scaled);
    denominator[lane] += squared(entry.scaled_span);
  }
  return {total(numerator), total(denominator)};
}

template <class T>
inline void all_chunk_sums(
    const Vectors<T>& vectors, Partial* partials, int64_t first, int64_t last) {
  for (int64_t chunk = first; chunk < last; ++chunk) {
    int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, vectors.count);
    if (!vectors.weight) {
      partials[chunk] = chunk_sums<false, false>(vectors, begin, end);
    } else if (vectors.weighted_normaliser) {
      partials[chunk] = chunk_sums<true, true>(vectors, begin, end);
    } else {
      partials[chunk] = chunk_sums<true, false>(vectors, begin, end);
    }
  }
}

template <bool kWeighted, bool kWeightedNormaliser, class T>
inline void write_gradients(
    const Vectors<T>& vectors, const Sums<T>& sums, T* __restrict__ d_theta,
    T* __restrict__ d_weight, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    auto entry = vectors.template at<kWeighted>(i, kWeightedNormaliser);
    d_theta[i] = theta_gradient(entry, sums);
    if (kWeighted && d_weight) d_weight[i] = weight_gradient(entry, sums, kWeightedNormaliser);
  }
}

template <class T>
inline void all_chunk_gradients(
    const Vectors<T>& vectors, const Sums<T>& sums, T* d_theta, T* d_weight, int64_t first,
    int64_t last) {
  for (int64_t chunk = first; chunk < last; ++chunk) {
    int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, vectors.count);
    if (!vectors.weight) {
      write_gradients<false, false>(vectors, sums, d_theta, d_weight, begin, end);
    } else if (vectors.weighted_normaliser) {
      write_gradients<true, true>(vectors, sums, d_theta, d_weight, begin, end);
    } else {
      write_gradients<true, false>(vectors, sums, d_theta, d_weight, begin, end);
    }
  }
}

IADD_CLONES void sweep(
    const Vectors<float>& vectors, Partial* partials, int64_t first, int64_t last) {
  all_chunk_sums(vectors, partials, first, last);
}

IADD_CLONES void sweep(
    const Vectors<double>& vectors, Partial* partials, int64_t first, int64_t last) {
  all_chunk_sums(vectors, partials, first, last);
}

IADD_CLONES void gradients(
    const Vectors<float>& vectors, const Sums<float>& sums, float* d_theta, float* d_weight,
    int64_t first, int64_t last) {
  all_chunk_gradients(vectors, sums, d_theta, d_weight, first, last);
}

IADD_CLONES void gradients(
    const Vectors<double>& vectors, const Sums<double>& sums, double* d_theta, double* d_weight,
    int64_t first, int64_t last) {
  all_chunk_gradients(vectors, sums, d_theta, d_weight, first, last);
}

struct Inputs {
  Tensor theta, start, target;
  OptionalTensor weight;
  bool weighted_normaliser;
};

template <class T>
T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->mutable_data_ptr<T>() : nullptr;
}

template <class T>
void compute(
    const Inputs& in, const Tensor& loss, const OptionalTensor& d_theta,
    const OptionalTensor& d_weight) {
  Vectors<T> vectors{
      in.theta.const_data_ptr<T>(), in.start.const_data_ptr<T>(), in.target.const_data_ptr<T>(),
      in.weight ? in.weight->const_data_ptr<T>() : nullptr, in.theta.numel(),
      in.weighted_normaliser};
  int64_t chunks = (vectors.count + kChunk - 1) / kChunk;
  std::vector<Partial> partials(chunks);
  torch::stable::parallel_for(0, chunks, kChunksPerThread, [&](int64_t first, int64_t last) {
    sweep(vectors, partials.data(), first, last);
  });
  Partial sum{0, 0};
  for (const Partial& partial : partials) {
    sum.numerator += partial.numerator;
    sum.denominator += partial.denominator;
  }
  Sums<T> sums = param_distance::sums<T>(sum.numerator, sum.denominator);
  *loss.mutable_data_ptr<T>() = sums.loss;
  if (!d_theta) return;
  T *to_theta = data_or_null<T>(d_theta), *to_weight = data_or_null<T>(d_weight);
  torch::stable::parallel_for(0, chunks, kChunksPerThread, [&](int64_t first, int64_t last) {
    gradients(vectors, sums, to_theta, to_weight, first, last);
  });
}

void distance_and_gradients(
    Tensor theta, Tensor start, Tensor target, OptionalTensor weight, bool weighted_normaliser,
    Tensor loss, OptionalTensor d_theta, OptionalTensor d_weight) {
  // A direct call reaches this without Python's checks.
  Check check("param_distance", "theta", theta, ScalarType::Float, ScalarType::Double);
  check.dimensions("theta", theta, 1);
  int64_t count = theta.size(0);
  check.demand(weight || !d_weight, "d_weight", "there is no weight");
  check.reads("theta", theta, {count});
  check.reads("start", start, {count});
  check.reads("target", target, {count});
  check.reads("weight", weight, {count});
  check.writes("loss", loss, {});
  check.writes("d_theta", d_theta, {count});
  check.writes("d_weight", d_weight, {count});
  Inputs in{theta, start, target, weight, weighted_normaliser};
  if (check.dtype() == ScalarType::Double) {
    compute<double>(in, loss, d_theta, d_weight);
  } else {
    compute<float>(in, loss, d_theta, d_weight);
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

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("param_distance", TORCH_BOX(&distance_boxed));
  library.impl("param_distance_gradients", TORCH_BOX(&gradients_boxed));
}

}  // namespace iadd::param_distance
