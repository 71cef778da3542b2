// The passes of norm_relu_pool over one plane (or one channel block of a sample), for every order.
#pragma once

#include <cmath>
#include <type_traits>

#include "norm_relu_pool.h"
#include "planes.h"

namespace iadd::norm_relu_pool {

// Pointers at the start of the batch; the weights' gradients as partial sums [N, C], one a plane.
template <class T>
struct Arguments {
  PlaneShape shape;
  bool channels_last;
  T eps, per_pixel;
  const T *z, *gamma, *beta, *dp, *zdot, *gammadot, *betadot, *dpdot;
  T *out, *sum_gamma, *sum_beta;
  T* dz;  // of the tangent of the backward: also the gradient itself, or null
};

// Where a plane, or a channel block of a sample, begins in z and in p, and its place in the sums.
struct Offsets {
  int64_t pixel, pooled, channel, partial;
  int64_t ahead = 0;  // pixels from here to those that are wanted next
};

template <class T>
inline T* moved(T* x, int64_t offset) {
  return x ? x + offset : x;
}

// One plane (or one channel block) on its way through the passes of an order. The passes are
// methods, and a group of planes goes through each of them together (run_group): the sums of one
// small plane are a chain of dependent additions, a square root and a division, which others fill.
template <class L, class T>
struct Plane {
  using S = typename L::Constant;

  L layout;
  const T *z, *next_z;
  T eps, per_pixel;
  S gamma, beta, mean, variance_plus_eps, rstd;

  Plane() = default;
  Plane(L layout, const Arguments<T>& a, const Offsets& at)
      : layout(layout),
        z(a.z + at.pixel),
        next_z(z + at.ahead),
        eps(a.eps),
        per_pixel(a.per_pixel),
        gamma(L::constant(a.gamma, at.channel, T(1))),
        beta(L::constant(a.beta, at.channel, T(0))) {}

  template <class At>
  auto xh(At at) const {
    return normalised(at(z), mean, rstd);
  }

  void find_mean() {
    S total[1];
    layout.flat_sums(total, [&](auto at, auto& sums) { sums.add(at, 0, at(z)); });
    mean = total[0] * per_pixel;
  }
  // Centred before it is squared: the variance of a plane far from zero keeps its digits. This pass
  // waits for nothing, so it asks for what the next group's first pass will read.
  void find_variance() {
    S total[1];
    layout.flat_sums(total, [&](auto at, auto& sums) {
      auto centred = mean - at(z);
      sums.add(at, 0, centred * centred);
      at.prefetch(next_z);
    });
    variance_plus_eps = total[0] * per_pixel + eps;
  }
  // ChannelsLast copies its inputs out of the sample first.
  void read_from(T* dense_z, T*) {
    layout.copy_in(z, dense_z);
    z = dense_z;
  }
  void find_tangent_means() {}
  void find_gradient_means() {}
};

template <class L, class T>
struct ForwardPlane : Plane<L, T> {
  using S = typename L::Constant;

  T* p;

  ForwardPlane() = default;
  ForwardPlane(L layout, const Arguments<T>& a, const Offsets& at)
      : Plane<L, T>(layout, a, at), p(a.out + at.pooled) {}

  void write() const {
    // relu(y) / 4 = relu(y / 4), exactly.
    T share = T(this->layout.shape.window_share());
    S scale = this->rstd * this->gamma * share, shift = this->beta * share;
    this->layout.window_sums(p, [&](auto at) {
      return rectified(preactivation(at(this->z), this->mean, scale, shift));
    });
  }
};

template <class L, class T>
struct BackwardPlane : Plane<L, T> {
  using S = typename L::Constant;

  const T* dp;
  T *dz, *sum_gamma, *sum_beta;
  GradientMeans<S> means;

  BackwardPlane() = default;
  BackwardPlane(L layout, const Arguments<T>& a, const Offsets& at)
      : Plane<L, T>(layout, a, at),
        dp(a.dp + at.pooled),
        dz(a.out + at.pixel),
        sum_gamma(moved(a.sum_gamma, at.partial)),
        sum_beta(moved(a.sum_beta, at.partial)) {}

  template <class At, class V>
  V dy(At at, V xh) const {
    return where_active(preactivation(xh, this->gamma, this->beta), at.up(dp));
  }

  void find_gradient_means() {
    S total[2];
    this->layout.sums(total, [&](auto at, auto& sums) {
      auto xh = this->xh(at);
      auto dy = this->dy(at, xh);
      sums.add(at, 0, dy);
      sums.add(at, 1, dy * xh);
    });
    means = gradient_means(total[0], total[1], this->gamma, this->per_pixel);
    if (sum_gamma) {
      L::keep(sum_beta, total[0]);
      L::keep(sum_gamma, total[1]);
    }
  }
  void write() const {
    this->layout.each([&](auto at) {
      auto xh = this->xh(at);
      at.store(dz, input_gradient(xh, dy(at, xh), this->gamma, this->rstd, means));
    });
  }
};

template <class L, class T>
struct TangentPlane : Plane<L, T> {
  using S = typename L::Constant;

  const T *zdot, *next_zdot;
  T* pdot;  // of the tangent alone
  S gammadot, betadot, mean_zdot, mean_xh_zdot;

  TangentPlane() = default;
  TangentPlane(L layout, const Arguments<T>& a, const Offsets& at)
      : Plane<L, T>(layout, a, at),
        zdot(a.zdot + at.pixel),
        next_zdot(zdot + at.ahead),
        pdot(a.out + at.pooled),
        gammadot(L::constant(a.gammadot, at.channel, T(0))),
        betadot(L::constant(a.betadot, at.channel, T(0))) {}

  void read_from(T* dense_z, T* dense_zdot) {
    Plane<L, T>::read_from(dense_z, dense_zdot);
    this->layout.copy_in(zdot, dense_zdot);
    zdot = dense_zdot;
  }

  template <class At, class V>
  V xhdot(At at, V xh) const {
    return normalised_tangent(xh, at(zdot), this->rstd, mean_zdot, mean_xh_zdot);
  }

  void find_tangent_means() {
    S total[2];
    this->layout.flat_sums(total, [&](auto at, auto& sums) {
      auto dot = at(zdot);
      sums.add(at, 0, dot);
      sums.add(at, 1, this->xh(at) * dot);
      at.prefetch(next_zdot);
    });
    mean_zdot = total[0] * this->per_pixel;
    mean_xh_zdot = total[1] * this->per_pixel;
  }
  void write() const {
    T share = T(this->layout.shape.window_share());
    S slope = this->gamma * share, slopedot = gammadot * share, shiftdot = betadot * share;
    this->layout.window_sums(pdot, [&](auto at) {
      auto xh = this->xh(at);
      return where_active(preactivation(xh, this->gamma, this->beta),
                          preactivation_tangent(xh, xhdot(at, xh), slope, slopedot, shiftdot));
    });
  }
};

template <class L, class T>
struct BackwardTangentPlane : TangentPlane<L, T> {
  using S = typename L::Constant;

  const T *dp, *dpdot;
  T *dzdot, *dz, *sum_gamma, *sum_beta;
  GradientMeans<S> means, means_tangent;

  BackwardTangentPlane() = default;
  BackwardTangentPlane(L layout, const Arguments<T>& a, const Offsets& at)
      : TangentPlane<L, T>(layout, a, at),
        dp(a.dp + at.pooled),
        dpdot(moved(a.dpdot, at.pooled)),
        dzdot(a.out + at.pixel),
        dz(moved(a.dz, at.pixel)),
        sum_gamma(moved(a.sum_gamma, at.partial)),
        sum_beta(moved(a.sum_beta, at.partial)) {}

  template <class V>
  struct Cotangents {
    V dy, dydot;
  };
  template <class At, class V>
  Cotangents<V> cotangents(At at, V xh) const {
    V y = preactivation(xh, this->gamma, this->beta);
    V dydot = dpdot ? where_active(y, V(at.up(dpdot))) : V{};
    return {where_active(y, V(at.up(dp))), dydot};
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
    means = gradient_means(total[0], total[1], this->gamma, this->per_pixel);
    means_tangent = gradient_tangent_means(total[2], total[3], total[0], total[1], this->gamma,
                                           this->gammadot, this->per_pixel);
    if (sum_gamma) {
      L::keep(sum_beta, total[2]);
      L::keep(sum_gamma, total[3]);
    }
  }
  void write() const {
    this->layout.each([&](auto at) {
      auto xh = this->xh(at);
      auto xhdot = this->xhdot(at, xh);
      auto [dy, dydot] = cotangents(at, xh);
      at.store(dzdot,
               input_gradient_tangent(xh, xhdot, dy, dydot, this->gamma, this->gammadot,
                                      this->rstd, this->mean_xh_zdot, means, means_tangent));
      if (dz) at.store(dz, input_gradient(xh, dy, this->gamma, this->rstd, means));
    });
  }
};

constexpr int64_t LARGEST_GROUP = 8;

// 1 / sqrt(variance), and NaN where the variance overflowed: 0 would pass for a plane without spread.
template <class T>
inline T rstd_of(T variance) {
  return (T(1) + (variance - variance)) / std::sqrt(variance);
}

// The square roots and divisions of a whole group, or of a channel block, as vectors.
template <class P>
inline void find_rstd(P* planes, int64_t count) {
  using S = std::remove_cvref_t<decltype(planes->rstd)>;
  if constexpr (std::is_floating_point_v<S>) {
    S value[LARGEST_GROUP];
    for (S& unused : value) unused = S(1);
    for (int64_t i = 0; i < count; ++i) value[i] = planes[i].variance_plus_eps;
    for (S& variance : value) variance = rstd_of(variance);
    for (int64_t i = 0; i < count; ++i) planes[i].rstd = value[i];
  } else {
    for (int64_t i = 0; i < count; ++i) {
      S value = planes[i].variance_plus_eps;
      for (unsigned lane = 0; lane < sizeof(S) / sizeof(value[0]); ++lane) {
        value[lane] = rstd_of(value[lane]);
      }
      planes[i].rstd = value;
    }
  }
}

template <class P>
inline void run_group(P* planes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) planes[i].find_mean();
  for (int64_t i = 0; i < count; ++i) planes[i].find_variance();
  find_rstd(planes, count);
  for (int64_t i = 0; i < count; ++i) planes[i].find_tangent_means();
  for (int64_t i = 0; i < count; ++i) planes[i].find_gradient_means();
  for (int64_t i = 0; i < count; ++i) planes[i].write();
}

}  // namespace iadd::norm_relu_pool
