// Instance norm + affine + ReLU + 2x2 average pool: the arithmetic of one pixel, and of one plane's
// sums. T is a number or a vector of pixels, S the plane's constants: a number where the lanes are
// pixels of one plane, a vector where they are channels. The formulas stand in
// iadd_fast/reference/norm_relu_pool.py.
#pragma once

#include "host_device.h"

namespace iadd::norm_relu_pool {

template <class T, class S>
IADD_HD T normalised(T z, S mean, S rstd) {
  return (z - mean) * rstd;
}

template <class T, class S>
IADD_HD T preactivation(T xh, S gamma, S beta) {
  return xh * gamma + beta;
}

// Where xh itself is not needed, scale = rstd gamma. Still centred first: z times scale plus a
// constant would cancel where a plane's mean is large against its spread.
template <class T, class S>
IADD_HD T preactivation(T z, S mean, S scale, S beta) {
  return (z - mean) * scale + beta;
}

// Not (y > 0 ? y : 0): a NaN of the input must reach the output.
template <class T>
IADD_HD T rectified(T y) {
  return T{} > y ? T{} : y;
}

template <class T>
IADD_HD T where_active(T y, T value) {
  return y > T{} ? value : T{};
}

template <class T, class S>
IADD_HD T normalised_tangent(T xh, T zdot, S rstd, S mean_zdot, S mean_xh_zdot) {
  return (zdot - mean_zdot - xh * mean_xh_zdot) * rstd;
}

template <class T, class S>
IADD_HD T preactivation_tangent(T xh, T xhdot, S gamma, S gammadot, S betadot) {
  return xhdot * gamma + xh * gammadot + betadot;
}

// Means over the plane that the gradient needs, from its sums: m(e) and m(e xh) with e = gamma dy.
template <class S>
struct GradientMeans {
  S e;
  S e_xh;
};

template <class S, class R>
IADD_HD GradientMeans<S> gradient_means(S sum_dy, S sum_dy_xh, S gamma, R per_pixel) {
  return {gamma * sum_dy * per_pixel, gamma * sum_dy_xh * per_pixel};
}

template <class T, class S>
IADD_HD T input_gradient(T xh, T dy, S gamma, S rstd, const GradientMeans<S>& mean) {
  return (dy * gamma - mean.e - xh * mean.e_xh) * rstd;
}

// The same for the tangent: m(edot) and m(edot xh + e xhdot), edot = gamma dydot + gammadot dy.
template <class S, class R>
IADD_HD GradientMeans<S> gradient_tangent_means(
    S sum_dydot, S sum_dgammadot, S sum_dy, S sum_dy_xh, S gamma, S gammadot, R per_pixel) {
  return {
      (gamma * sum_dydot + gammadot * sum_dy) * per_pixel,
      (gamma * sum_dgammadot + gammadot * sum_dy_xh) * per_pixel};
}

template <class T, class S>
IADD_HD T input_gradient_tangent(
    T xh, T xhdot, T dy, T dydot, S gamma, S gammadot, S rstd, S mean_xh_zdot,
    const GradientMeans<S>& mean, const GradientMeans<S>& mean_tangent) {
  T dz = input_gradient(xh, dy, gamma, rstd, mean);
  T edot = dydot * gamma + dy * gammadot;
  return (edot - mean_tangent.e - xhdot * mean.e_xh - xh * mean_tangent.e_xh - dz * mean_xh_zdot) *
      rstd;
}

}  // namespace iadd::norm_relu_pool
