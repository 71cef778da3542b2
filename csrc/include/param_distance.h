// The weighted, normalised squared distance of parameter vectors: the arithmetic of one entry.
// The formulas stand in iadd_fast/reference/param_distance.py.
#pragma once

#include "host_device.h"

namespace iadd::param_distance {

// One entry of theta - target and of start - target, plain and as the two sums take them.
template <class T>
struct Entry {
  T difference, span, weight, scaled, scaled_span;
};

template <class T>
IADD_HD Entry<T> entry(T theta, T start, T target, T weight, bool weighted_normaliser) {
  T difference = theta - target, span = start - target;
  T scaled_span = weighted_normaliser ? weight * span : span;
  return {difference, span, weight, weight * difference, scaled_span};
}

// Squared in float64: a product of two float32 numbers is exact there.
template <class T>
IADD_HD double squared(T value) {
  return static_cast<double>(value) * static_cast<double>(value);
}

// What the gradients need of the sums: the distance and 2 / denominator.
template <class T>
struct Sums {
  T loss, factor;
};

template <class T>
IADD_HD Sums<T> sums(double numerator, double denominator) {
  return {static_cast<T>(numerator / denominator), static_cast<T>(2 / denominator)};
}

template <class T>
IADD_HD T theta_gradient(const Entry<T>& entry, const Sums<T>& sums) {
  return sums.factor * entry.weight * entry.scaled;
}

template <class T>
IADD_HD T weight_gradient(const Entry<T>& entry, const Sums<T>& sums, bool weighted_normaliser) {
  T gradient = entry.scaled * entry.difference;
  if (weighted_normaliser) gradient = gradient - sums.loss * entry.scaled_span * entry.span;
  return sums.factor * gradient;
}

}  // namespace iadd::param_distance
