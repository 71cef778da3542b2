// norm_relu_pool on the CPU. One task is one plane (planar) or up to 16 channels of one sample
// (channels-last): it is read from memory once, its further passes find it in the cache, and the
// sums that the weights' gradients need come out of the passes that the input's gradient needs.
#include "norm_relu_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "clones.h"
#include "pages.h"
#include "planes.h"

namespace iadd::norm_relu_pool {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Pointers at the start of the batch; the weights' gradients as partial sums [N, C], one a plane.
template <class T>
struct Arguments {
  PlaneShape shape;
  bool channels_last;
  T eps;
  const T *z, *gamma, *beta, *dp, *zdot, *gammadot, *betadot, *dpdot;
  T *out, *sum_gamma, *sum_beta;

  // Moved to one plane, or to one channel block of a sample.
  Arguments at(int64_t pixel_offset, int64_t pooled_offset, bool writes_pooled) const {
    auto moved = [](auto* x, int64_t offset) { return x ? x + offset : x; };
    Arguments there = *this;
    there.z = z + pixel_offset;
    there.zdot = moved(zdot, pixel_offset);
    there.dp = moved(dp, pooled_offset);
    there.dpdot = moved(dpdot, pooled_offset);
    there.out = out + (writes_pooled ? pooled_offset : pixel_offset);
    return there;
  }
};

// One plane (or one channel block) on its way through the passes of an order. The passes are methods,
// and a group of planes goes through each of them together (run_group): the sums of one small plane
// are a chain of dependent additions, a square root and a division, which others can fill.
template <class L, class T>
struct Plane {
  using S = typename L::Constant;

  L layout;
  Arguments<T> a;
  int64_t partial;  // where this plane's partial sums go
  S gamma, beta, mean, rstd;

  Plane() = default;
  Plane(L layout, const Arguments<T>& a, int64_t channel, int64_t partial)
      : layout(layout),
        a(a),
        partial(partial),
        gamma(L::constant(a.gamma, channel, T(1))),
        beta(L::constant(a.beta, channel, T(0))) {}

  T per_pixel() const { return T(1) / T(layout.shape.pixels()); }
  template <class At>
  auto xh(At at) const {
    return normalised(at(a.z), mean, rstd);
  }

  void find_mean() {
    S total[1];
    layout.flat_sums(total, [&](auto at, auto& sums) { sums.add(at, 0, at(a.z)); });
    mean = total[0] * per_pixel();
  }
  // Centred before it is squared: the variance of a plane far from zero keeps its digits.
  void find_variance() {
    S total[1];
    layout.flat_sums(total, [&](auto at, auto& sums) {
      auto centred = mean - at(a.z);
      sums.add(at, 0, centred * centred);
    });
    rstd = total[0] * per_pixel() + a.eps;
  }
  void find_rstd() {
    if constexpr (std::is_same_v<S, T>) {
      rstd = T(1) / std::sqrt(rstd);
    } else {
      for (unsigned i = 0; i < sizeof(S) / sizeof(T); ++i) rstd[i] = T(1) / std::sqrt(rstd[i]);
    }
  }
  void find_tangent_means() {}
  void find_gradient_means() {}
};

template <class L, class T>
struct ForwardPlane : Plane<L, T> {
  static constexpr bool writes_pooled = true;
  using S = typename L::Constant;

  ForwardPlane() = default;
  ForwardPlane(L layout, const Arguments<T>& a, int64_t channel, int64_t partial)
      : Plane<L, T>(layout, a, channel, partial) {}

  void write() const {
    // relu(y) / 4 = relu(y / 4), exactly.
    T share = T(this->layout.shape.window_share());
    S scale = this->rstd * this->gamma * share, shift = this->beta * share;
    this->layout.window_sums(this->a.out, [&](auto at) {
      return rectified(preactivation(at(this->a.z), this->mean, scale, shift));
    });
  }
};

template <class L, class T>
struct BackwardPlane : Plane<L, T> {
  static constexpr bool writes_pooled = false;
  using S = typename L::Constant;

  GradientMeans<S> means;

  BackwardPlane() = default;
  BackwardPlane(L layout, const Arguments<T>& a, int64_t channel, int64_t partial)
      : Plane<L, T>(layout, a, channel, partial) {}

  template <class At, class V>
  V dy(At at, V xh) const {
    return where_active(preactivation(xh, this->gamma, this->beta), at.up(this->a.dp));
  }

  void find_gradient_means() {
    S total[2];
    this->layout.sums(total, [&](auto at, auto& sums) {
      auto xh = this->xh(at);
      auto dy = this->dy(at, xh);
      sums.add(at, 0, dy);
      sums.add(at, 1, dy * xh);
    });
    means = gradient_means(total[0], total[1], this->gamma, this->per_pixel());
    if (this->a.sum_gamma) {
      L::keep(this->a.sum_beta, this->partial, total[0]);
      L::keep(this->a.sum_gamma, this->partial, total[1]);
    }
  }
  void write() const {
    this->layout.each([&](auto at) {
      auto xh = this->xh(at);
      at.store(this->a.out, input_gradient(xh, dy(at, xh), this->gamma, this->rstd, means));
    });
  }
};

template <class L, class T>
struct TangentPlane : Plane<L, T> {
  static constexpr bool writes_pooled = true;
  using S = typename L::Constant;

  S gammadot, betadot, mean_zdot, mean_xh_zdot;

  TangentPlane() = default;
  TangentPlane(L layout, const Arguments<T>& a, int64_t channel, int64_t partial)
      : Plane<L, T>(layout, a, channel, partial),
        gammadot(L::constant(a.gammadot, channel, T(0))),
        betadot(L::constant(a.betadot, channel, T(0))) {}

  template <class At, class V>
  V xhdot(At at, V xh) const {
    return normalised_tangent(xh, at(this->a.zdot), this->rstd, mean_zdot, mean_xh_zdot);
  }

  void find_tangent_means() {
    S total[2];
    this->layout.flat_sums(total, [&](auto at, auto& sums) {
      auto zdot = at(this->a.zdot);
      sums.add(at, 0, zdot);
      sums.add(at, 1, this->xh(at) * zdot);
    });
    mean_zdot = total[0] * this->per_pixel();
    mean_xh_zdot = total[1] * this->per_pixel();
  }
  void write() const {
    T share = T(this->layout.shape.window_share());
    S slope = this->gamma * share, slopedot = gammadot * share, shiftdot = betadot * share;
    this->layout.window_sums(this->a.out, [&](auto at) {
      auto xh = this->xh(at);
      return where_active(preactivation(xh, this->gamma, this->beta),
                          preactivation_tangent(xh, xhdot(at, xh), slope, slopedot, shiftdot));
    });
  }
};

template <class L, class T>
struct BackwardTangentPlane : TangentPlane<L, T> {
  static constexpr bool writes_pooled = false;
  using S = typename L::Constant;

  GradientMeans<S> means, means_tangent;

  BackwardTangentPlane() = default;
  BackwardTangentPlane(L layout, const Arguments<T>& a, int64_t channel, int64_t partial)
      : TangentPlane<L, T>(layout, a, channel, partial) {}

  template <class V>
  struct Cotangents {
    V dy, dydot;
  };
  template <class At, class V>
  Cotangents<V> cotangents(At at, V xh) const {
    V y = preactivation(xh, this->gamma, this->beta);
    V dydot = this->a.dpdot ? where_active(y, V(at.up(this->a.dpdot))) : V{};
    return {where_active(y, V(at.up(this->a.dp))), dydot};
  }

  void find_gradient_means() {
    S total[4];
    this->layout.sums(total, [&](auto at, auto& sums) {
      auto xh = this->xh(at);
      auto xhdot = this->xhdot(at, xh);
      auto [dy, dydot] = cotangents(at, xh);
      sums.add(at, 0, dy);
      sums.add(at, 1, dy * xh);
      sums.add(at, 2, dydot);
      sums.add(at, 3, dydot * xh + dy * xhdot);
    });
    means = gradient_means(total[0], total[1], this->gamma, this->per_pixel());
    means_tangent = gradient_tangent_means(total[2], total[3], total[0], total[1], this->gamma,
                                           this->gammadot, this->per_pixel());
    if (this->a.sum_gamma) {
      L::keep(this->a.sum_beta, this->partial, total[2]);
      L::keep(this->a.sum_gamma, this->partial, total[3]);
    }
  }
  void write() const {
    this->layout.each([&](auto at) {
      auto xh = this->xh(at);
      auto xhdot = this->xhdot(at, xh);
      auto [dy, dydot] = cotangents(at, xh);
      at.store(this->a.out,
               input_gradient_tangent(xh, xhdot, dy, dydot, this->gamma, this->gammadot,
                                      this->rstd, this->mean_xh_zdot, means, means_tangent));
    });
  }
};

template <class P>
inline void run_group(P* planes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) planes[i].find_mean();
  for (int64_t i = 0; i < count; ++i) planes[i].find_variance();
  for (int64_t i = 0; i < count; ++i) planes[i].find_rstd();
  for (int64_t i = 0; i < count; ++i) planes[i].find_tangent_means();
  for (int64_t i = 0; i < count; ++i) planes[i].find_gradient_means();
  for (int64_t i = 0; i < count; ++i) planes[i].write();
}

constexpr int64_t CHANNEL_BLOCK = 16;

inline int64_t channel_blocks(int64_t channels) {
  return (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
}

// Planes begin..end of the batch, numbered sample * C + channel, in groups that stay in the L1 cache.
template <template <class, class> class Op, class T>
inline void planar_tasks(const Arguments<T>& a, int64_t begin, int64_t end) {
  using P = Op<Planar<T>, T>;
  constexpr int64_t LARGEST_GROUP = 8, GROUP_BYTES = 8192;
  P group[LARGEST_GROUP];
  int64_t pixels = a.shape.pixels(), pooled = a.shape.pooled_pixels();
  int64_t bytes = pixels * int64_t(sizeof(T)) * (a.zdot ? 2 : 1);
  int64_t size = std::clamp<int64_t>(GROUP_BYTES / bytes, 1, LARGEST_GROUP);
  for (int64_t first = begin; first < end; first += size) {
    int64_t count = std::min(size, end - first);
    for (int64_t i = 0; i < count; ++i) {
      int64_t plane = first + i;
      group[i] = P(Planar<T>{a.shape}, a.at(plane * pixels, plane * pooled, P::writes_pooled),
                   plane % a.shape.channels, plane);
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
        ChannelsLast<T, M> planes{a.shape};
        Arguments<T> there = a.at(sample * pixels * channels + channel,
                                  sample * pooled * channels + channel,
                                  Op<Planar<T>, T>::writes_pooled);
        planes.copy_in(there.z, dense_z.data());
        there.z = dense_z.data();
        if (there.zdot) {
          planes.copy_in(there.zdot, dense_zdot.data());
          there.zdot = dense_zdot.data();
        }
        Op<ChannelsLast<T, M>, T> block(planes, there, channel, sample * channels + channel);
        run_group(&block, 1);
      }
    };
    chunks.template operator()<16>();
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
};

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
      shape, in.channels_last, static_cast<T>(in.eps),
      static_cast<const T*>(in.z.const_data_ptr()), pointer(in.gamma), pointer(in.beta),
      pointer(in.dp), pointer(in.zdot), pointer(in.gammadot), pointer(in.betadot),
      pointer(in.dpdot), static_cast<T*>(out.mutable_data_ptr()),
      out_gamma ? sum_gamma.data() : nullptr, out_gamma ? sum_beta.data() : nullptr};
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
void launch(const Inputs& in, const Tensor& out, const OptionalTensor& out_gamma = std::nullopt,
            const OptionalTensor& out_beta = std::nullopt) {
  if (in.z.scalar_type() == torch::headeronly::ScalarType::Double) {
    dispatch<Op, double>(in, out, out_gamma, out_beta);
  } else {
    dispatch<Op, float>(in, out, out_gamma, out_beta);
  }
}

void forward(Tensor z, OptionalTensor gamma, OptionalTensor beta, double eps, bool pool,
             bool channels_last, Tensor p) {
  launch<Forward>(
      {z, gamma, beta, eps, pool, channels_last, {}, {}, {}, {}, {}}, p);
}

void backward(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor dp, double eps,
              bool pool, bool channels_last, Tensor dz, OptionalTensor dgamma,
              OptionalTensor dbeta) {
  launch<Backward>(
      {z, gamma, beta, eps, pool, channels_last, dp, {}, {}, {}, {}}, dz, dgamma, dbeta);
}

void tangent(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor zdot,
             OptionalTensor gammadot, OptionalTensor betadot, double eps, bool pool,
             bool channels_last, Tensor pdot) {
  launch<Tangent>(
      {z, gamma, beta, eps, pool, channels_last, {}, zdot, gammadot, betadot, {}}, pdot);
}

void backward_tangent(Tensor z, OptionalTensor gamma, OptionalTensor beta, Tensor dp, Tensor zdot,
                      OptionalTensor gammadot, OptionalTensor betadot, OptionalTensor dpdot,
                      double eps, bool pool, bool channels_last, Tensor dzdot,
                      OptionalTensor dgammadot, OptionalTensor dbetadot) {
  launch<BackwardTangent>(
      {z, gamma, beta, eps, pool, channels_last, dp, zdot, gammadot, betadot, dpdot}, dzdot,
      dgammadot, dbetadot);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("norm_relu_pool", TORCH_BOX(&forward));
  library.impl("norm_relu_pool_backward", TORCH_BOX(&backward));
  library.impl("norm_relu_pool_tangent", TORCH_BOX(&tangent));
  library.impl("norm_relu_pool_backward_tangent", TORCH_BOX(&backward_tangent));
}

}  // namespace iadd::norm_relu_pool
