// exp of a vector of numbers that are not above zero, to about one unit in the last place: the
// softmax of a row calls nothing else that is slow, and the C library takes one number at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "lanes.h"

namespace iadd {

template <class T, int N>
inline Lanes<T, N> exponential(Lanes<T, N> x) {
  constexpr bool single = std::is_same_v<T, float>;
  // Unsigned: far below `smallest` the sum of bits leaves the range, and is not taken.
  using Bits = std::conditional_t<single, uint32_t, uint64_t>;
  // exp(x) = 2^k exp(r), r = x - k ln 2. Adding 1.5 * 2^23 (2^52) rounds to a whole number, which
  // then stands in the low bits; ln 2 is split so that k times its first part is exact.
  constexpr T rounder = single ? T(12582912.0) : T(6755399441055744.0);
  constexpr T ln2_high = single ? T(0.693359375) : T(6.93145751953125e-1);
  constexpr T ln2_low = single ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
  constexpr T smallest = single ? T(-87.3) : T(-708.3);
  constexpr int degree = single ? 7 : 13;

  Lanes<T, N> shifted = x * T(1.44269504088896340736) + rounder;
  Lanes<T, N> k = shifted - rounder;
  Lanes<T, N> r = x - k * ln2_high - k * ln2_low;
  double factorial = 1;
  for (int i = 2; i <= degree; ++i) factorial *= i;
  Lanes<T, N> sum = fill<T, N>(T(1 / factorial));
  for (int i = degree; i > 0; --i) {
    factorial /= i;
    sum = sum * r + T(1 / factorial);
  }
  Lanes<Bits, N> bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << (single ? 23 : 52)) +
      static_cast<Bits>(single ? int64_t(0x3F800000) : int64_t(0x3FF0000000000000));
  Lanes<T, N> power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < smallest ? Lanes<T, N>{} : sum * power;
}

}  // namespace iadd
