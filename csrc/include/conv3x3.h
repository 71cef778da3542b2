// 3x3 convolution by Winograd's minimal filtering F(2x2, 3x3): the transforms. A tile of 2x2
// outputs needs a patch of 4x4 inputs; in the transformed domain it is 16 products instead of 36.
// All factors are 0, 1 and 1/2, so a float32 result stays within a few roundings of the direct sum's
// (of F(4x4, 3x3), whose factors reach 8 and 1/24, it would not).
//
//   output = A^T [(G g G^T) * (B^T d B)] A
//   B^T = 1  0 -1  0    G = 1    0    0     A^T = 1 1  1  0
//         0  1  1  0        1/2  1/2  1/2         0 1 -1 -1
//         0 -1  1  0        1/2 -1/2  1/2
//         0  1  0 -1        0    0    1
//
// T is a number or a vector of channels. Each function is one dimension of its transform.
#pragma once

#include "host_device.h"

namespace iadd::conv3x3 {

template <class T>
struct Two {
  T v[2];
};
template <class T>
struct Three {
  T v[3];
};
template <class T>
struct Four {
  T v[4];
};

// B^T: four inputs.
template <class T>
IADD_HD Four<T> input_transform(const T& a, const T& b, const T& c, const T& d) {
  return {{a - c, b + c, c - b, b - d}};
}

// G: three weights.
template <class T>
IADD_HD Four<T> weight_transform(const T& a, const T& b, const T& c) {
  T even = (a + c) * T(T{} + 0.5f), odd = b * T(T{} + 0.5f);
  return {{a, even + odd, even - odd, c}};
}

// A^T: two outputs.
template <class T>
IADD_HD Two<T> output_transform(const T& a, const T& b, const T& c, const T& d) {
  return {{a + b + c, b - c - d}};
}

// A: two gradients of outputs.
template <class T>
IADD_HD Four<T> output_transposed(const T& a, const T& b) {
  return {{a, a + b, a - b, -b}};
}

// G^T: three gradients of weights.
template <class T>
IADD_HD Three<T> weight_transposed(const T& a, const T& b, const T& c, const T& d) {
  T even = (b + c) * T(T{} + 0.5f), odd = (b - c) * T(T{} + 0.5f);
  return {{a + even, odd, even + d}};
}

}  // namespace iadd::conv3x3
