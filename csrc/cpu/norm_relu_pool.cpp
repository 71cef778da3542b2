// norm_relu_pool on the CPU. One task is one plane (planar) or up to 16 channels of one sample
// (channels-last): it is read from memory once, its further passes find it in the cache, and the
// sums that the weights' gradients need come out of the passes that the input's gradient needs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "clones.h"
#include "norm_relu_pool_passes.h"
#include "pages.h"

namespace iadd::norm_relu_pool {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t CHANNEL_BLOCK = 16;

inline int64_t channel_blocks(int64_t channels) {
  return (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
}

// Planes begin..end of the batch, numbered sample * C + channel, in groups that stay in the L1
// cache.
template <template <class, class> class Op, class T>
inline void planar_tasks(const Arguments<T>& a, int64_t begin, int64_t end) {
  using P = Op<Planar<T>, T>;
  constexpr int64_t GROUP_BYTES = 8192;
  P group[LARGEST_GROUP];
  int64_t pixels = a.shape.pixels(), pooled = a.shape.pooled_pixels();
  int64_t bytes = pixels * int64_t(sizeof(T)) * (a.zdot ? 2 : 1);
  int64_t size = std::clamp<int64_t>(GROUP_BYTES / bytes, 1, LARGEST_GROUP);
  int64_t ahead = size * pixels, channel = begin % a.shape.channels;
  for (int64_t first = begin; first < end; first += size) {
    int64_t count = std::min(size, end - first);
    for (int64_t i = 0; i < count; ++i) {
      int64_t plane = first + i;
      group[i] = P(Planar<T>{a.shape}, a,
                   {plane * pixels, plane * pooled, channel, plane, ahead});
      if (++channel == a.shape.channels) channel = 0;
    }
    run_group(group, count);
  }
}

// Channel blocks begin..end, numbered sample * blocks + block.
template <template <class, class> class Op, class T>
inline void channels_last_tasks(const Arguments<T>& a, int64_t begin, int64_t end) {
  std::vector<T> dense_z(a.shape.pixels() * CHANNEL_BLOCK);
  std::vector<T> dense_zdot(a.zdot ? dense_z.size() : 0);
  int64_t channels = a.shape.channels, blocks = channel_blocks(channels);
  int64_t pixels = a.shape.pixels(), pooled = a.shape.pooled_pixels();
  for (int64_t task = begin; task < end; ++task) {
    int64_t sample = task / blocks, channel = (task % blocks) * CHANNEL_BLOCK;
    int64_t last = std::min(channel + CHANNEL_BLOCK, channels);
    auto chunks = [&]<int M>() {
      for (; channel + M <= last; channel += M) {
        int64_t first = sample * channels;
        Op<ChannelsLast<T, M>, T> block(
            {a.shape}, a,
            {first * pixels + channel, first * pooled + channel, channel, first + channel});
        block.read_from(dense_z.data(), dense_zdot.data());
        run_group(&block, 1);
      }
    };
    chunks.template operator()<wide<T>>();
    chunks.template operator()<4>();
    chunks.template operator()<1>();
  }
}

template <template <class, class> class Op, class T>
inline void tasks(const Arguments<T>& a, int64_t begin, int64_t end) {
  if (a.channels_last) {
    channels_last_tasks<Op>(a, begin, end);
  } else {
    planar_tasks<Op>(a, begin, end);
  }
}

// target_clones takes no templates: the functions it clones are spelled out.
#define IADD_TASKS(NAME, PLANE) \
  struct NAME {}; \
  IADD_CLONES void run(NAME, const Arguments<float>& a, int64_t begin, int64_t end) { \
    tasks<PLANE>(a, begin, end); \
  } \
  IADD_CLONES void run(NAME, const Arguments<double>& a, int64_t begin, int64_t end) { \
    tasks<PLANE>(a, begin, end); \
  }
IADD_TASKS(Forward, ForwardPlane)
IADD_TASKS(Backward, BackwardPlane)
IADD_TASKS(Tangent, TangentPlane)
IADD_TASKS(BackwardTangent, BackwardTangentPlane)
#undef IADD_TASKS

// The batch's sum of partial sums [N, C], in order, in double.
template <class T>
void sum_over_samples(const std::vector<T>& partial, int64_t channels, const Tensor& out) {
  std::vector<double> total(channels, 0.0);
  for (size_t i = 0; i < partial.size(); ++i) total[i % channels] += partial[i];
  T* to = static_cast<T*>(out.mutable_data_ptr());
  for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<T>(total[c]);
}

struct Inputs {
  const Tensor& z;
  const OptionalTensor &gamma, &beta;
  double eps;
  bool pool, channels_last;
  OptionalTensor dp, zdot, gammadot, betadot, dpdot;
  OptionalTensor dz = std::nullopt;  // an output
};

// What a direct call could get wrong; `pooled`: the output is p or its tangent.
ScalarType checked(const Inputs& in, bool pooled, const Tensor& out,
                   const OptionalTensor& out_gamma, const OptionalTensor& out_beta) {
  Check check("norm_relu_pool", "z", in.z, ScalarType::Float, ScalarType::Double);
  check.dimensions("z", in.z, 4);
  int64_t n = in.z.size(0), c = in.z.size(1), h = in.z.size(2), w = in.z.size(3);
  int64_t ph = in.pool ? h / 2 : h, pw = in.pool ? w / 2 : w;
  check.demand(ph > 0 && pw > 0, "z", "the 2x2 pool takes sides of at least 2");
  check.demand(in.gamma.has_value() == in.beta.has_value(), "beta", "takes gamma and beta or none");
  check.demand(out_gamma.has_value() == out_beta.has_value(), "dbeta",
               "takes the gradients of gamma and beta or none");
  Layout layout = in.channels_last ? Layout::kChannelsLast : Layout::kContiguous;
  check.reads("z", in.z, {n, c, h, w}, layout);
  check.reads("gamma", in.gamma, {c});
  check.reads("beta", in.beta, {c});
  check.reads("dp", in.dp, {n, c, ph, pw}, layout);
  check.reads("zdot", in.zdot, {n, c, h, w}, layout);
  check.reads("gammadot", in.gammadot, {c});
  check.reads("betadot", in.betadot, {c});
  check.reads("dpdot", in.dpdot, {n, c, ph, pw}, layout);
  if (pooled) {
    check.writes("p", out, {n, c, ph, pw}, layout);
  } else {
    check.writes("dz", out, {n, c, h, w}, layout);
  }
  check.writes("dgamma", out_gamma, {c});
  check.writes("dbeta", out_beta, {c});
  check.writes("dz", in.dz, {n, c, h, w}, layout);
  return check.dtype();
}

template <class Op, class T>
void dispatch(const Inputs& in, const Tensor& out, const OptionalTensor& out_gamma,
              const OptionalTensor& out_beta) {
  auto pointer = [](const OptionalTensor& x) {
    return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
  };
  PlaneShape shape{in.z.size(2), in.z.size(3), in.z.size(1), in.pool};
  int64_t samples = in.z.size(0), planes = samples * shape.channels;
  std::vector<T> sum_gamma(out_gamma ? planes : 0), sum_beta(out_gamma ? planes : 0);
  Arguments<T> a{
      shape, in.channels_last, static_cast<T>(in.eps), T(1) / T(shape.pixels()),
      static_cast<const T*>(in.z.const_data_ptr()), pointer(in.gamma), pointer(in.beta),
      pointer(in.dp), pointer(in.zdot), pointer(in.gammadot), pointer(in.betadot),
      pointer(in.dpdot), static_cast<T*>(out.mutable_data_ptr()),
      out_gamma ? sum_gamma.data() : nullptr, out_gamma ? sum_beta.data() : nullptr,
      in.dz ? static_cast<T*>(in.dz->mutable_data_ptr()) : nullptr};
  prefer_huge_pages(a.out, out.numel() * int64_t(sizeof(T)));
  int64_t count = in.channels_last ? samples * channel_blocks(shape.channels) : planes;
  int64_t per_task = shape.pixels() * (in.channels_last ? CHANNEL_BLOCK : 1);
  // A thread is worth waking for some ten microseconds of work.
  int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, per_task));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    run(Op{}, a, begin, end);
  });
  if (out_gamma) {
    sum_over_samples(sum_gamma, shape.channels, *out_gamma);
    sum_over_samples(sum_beta, shape.channels, *out_beta);
  }
}

template <class Op>
void launch(const Inputs& in, bool pooled, const Tensor& out, const OptionalTensor& out_gamma = std::nullopt,
            const OptionalTensor& out_beta = std::nullopt) {
  if (checked(in, pooled, out, out_gamma, out_beta) == ScalarType::Double) {
    dispatch<Op, double>(in, out, out_gamma, out_beta);
  } else {
    dispatch<Op, float>(in, out, out_gamma, out_beta);
  }
}

void forward(Tensor z, OptionalTensor gamma, OptionalTensor beta, double eps, bool pool,
             bool channels_last, Tensor p) {
  launch<Forward>(
      {z, gamma, beta, eps, pool, channels_last, {}, {}, {}, {}, {}}, true, p);
}

void backward(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor dp, double eps,
              bool pool, bool channels_last, Tensor dz, OptionalTensor dgamma,
              OptionalTensor dbeta) {
  launch<Backward>(
      {z, gamma, beta, eps, pool, channels_last, dp, {}, {}, {}, {}}, false, dz, dgamma, dbeta);
}

void tangent(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor zdot,
             OptionalTensor gammadot, OptionalTensor betadot, double eps, bool pool,
             bool channels_last, Tensor pdot) {
  launch<Tangent>(
      {z, gamma, beta, eps, pool, channels_last, {}, zdot, gammadot, betadot, {}}, true, pdot);
}

void backward_tangent(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor dp, Tensor zdot,
                      OptionalTensor gammadot, OptionalTensor betadot, OptionalTensor dpdot,
                      double eps, bool pool, bool channels_last, Tensor dzdot,
                      OptionalTensor dgammadot, OptionalTensor dbetadot, OptionalTensor dz) {
  launch<BackwardTangent>(
      {z, gamma, beta, eps, pool, channels_last, dp, zdot, gammadot, betadot, dpdot, dz}, false,
      dzdot, dgammadot, dbetadot);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("norm_relu_pool", TORCH_BOX(&forward));
  library.impl("norm_relu_pool_backward", TORCH_BOX(&backward));
  library.impl("norm_relu_pool_tangent", TORCH_BOX(&tangent));
  library.impl("norm_relu_pool_backward_tangent", TORCH_BOX(&backward_tangent));
}

}  // namespace iadd::norm_relu_pool
