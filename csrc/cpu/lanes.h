// Vectors of N numbers, lowered by the compiler to whatever width the machine has. They have at
// most 64 bytes: of wider ones GCC 12 takes parts from the wrong place (-O3 and AVX-512, a load of
// memory that a loop has just written).
#pragma once

#include <cstdint>
#include <cstring>

namespace iadd {

template <class T, int N>
struct LanesOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct LanesOf<T, 1> {
  typedef T type;
};
template <class T, int N>
using Lanes = typename LanesOf<T, N>::type;

// The lanes of a whole vector.
template <class T>
constexpr int wide = 64 / sizeof(T);

template <int N, class T>
inline Lanes<T, N> load(const T* from) {
  Lanes<T, N> lanes;
  std::memcpy(&lanes, from, N * sizeof(T));
  return lanes;
}

template <class T, class V>
inline void store(T* to, const V& lanes) {
  std::memcpy(to, &lanes, sizeof(V));
}

template <class T, int N>
inline Lanes<T, N> fill(T value) {
  return Lanes<T, N>{} + value;
}

// Twice the lanes, zeros above. The functions below change the number of lanes here or in low_half,
// and shuffle at one width: a shuffle that does both goes through memory.
template <class T, int N>
inline Lanes<T, 2 * N> with_zeros(Lanes<T, N> a) {
  constexpr Lanes<T, N> zero{};
  if constexpr (N == 2) {
    return __builtin_shufflevector(a, zero, 0, 1, 2, 3);
  } else if constexpr (N == 4) {
    return __builtin_shufflevector(a, zero, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    static_assert(N == 8);
    return __builtin_shufflevector(a, zero, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
}

template <class T, int N>
inline Lanes<T, N / 2> low_half(Lanes<T, N> a) {
  if constexpr (N == 4) {
    return __builtin_shufflevector(a, a, 0, 1);
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(a, a, 0, 1, 2, 3);
  } else {
    static_assert(N == 16);
    return __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7);
  }
}

// a0 a0 a1 a1 ...: the columns that a row of pooled values came from.
template <class T, int N>
inline Lanes<T, 2 * N> doubled(Lanes<T, N> a) {
  if constexpr (N == 1) {
    return Lanes<T, 2>{a, a};
  } else {
    Lanes<T, 2 * N> w = with_zeros<T, N>(a);
    if constexpr (N == 2) {
      return __builtin_shufflevector(w, w, 0, 0, 1, 1);
    } else if constexpr (N == 4) {
      return __builtin_shufflevector(w, w, 0, 0, 1, 1, 2, 2, 3, 3);
    } else {
      return __builtin_shufflevector(w, w, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    }
  }
}

// a0 + a1, a2 + a3, ...: its transpose.
template <class T, int N>
inline Lanes<T, N / 2> pair_sums(Lanes<T, N> a) {
  if constexpr (N == 2) {
    return a[0] + a[1];
  } else {
    Lanes<T, N> even, odd;
    if constexpr (N == 4) {
      even = __builtin_shufflevector(a, a, 0, 2, 0, 2);
      odd = __builtin_shufflevector(a, a, 1, 3, 1, 3);
    } else if constexpr (N == 8) {
      even = __builtin_shufflevector(a, a, 0, 2, 4, 6, 0, 2, 4, 6);
      odd = __builtin_shufflevector(a, a, 1, 3, 5, 7, 1, 3, 5, 7);
    } else {
      even = __builtin_shufflevector(a, a, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
      odd = __builtin_shufflevector(a, a, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    }
    return low_half<T, N>(even + odd);
  }
}

// a0 + a8, a1 + a9, ...: the transpose of repeated.
template <class T>
inline Lanes<T, 8> halves_sum(Lanes<T, 16> a) {
  return __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7) +
      __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The pair sums of two vectors, one behind the other.
template <class T>
inline Lanes<T, 16> pair_sums(Lanes<T, 16> a, Lanes<T, 16> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
      __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Of two vectors that hold two rows of eight each: the window sums of a, then those of b.
template <class T>
inline Lanes<T, 8> row_pair_sums(Lanes<T, 16> a, Lanes<T, 16> b) {
  return halves_sum<T>(
      __builtin_shufflevector(a, b, 0, 2, 4, 6, 16, 18, 20, 22, 8, 10, 12, 14, 24, 26, 28, 30) +
      __builtin_shufflevector(a, b, 1, 3, 5, 7, 17, 19, 21, 23, 9, 11, 13, 15, 25, 27, 29, 31));
}

// a0 .. a7 a0 .. a7.
template <class T>
inline Lanes<T, 16> repeated(Lanes<T, 8> a) {
  Lanes<T, 16> w = with_zeros<T, 8>(a);
  return __builtin_shufflevector(w, w, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
}

// The sum of a whole vector's lanes, always in the same (pairwise) order. It halves the vector as
// long as there is a register of half the width, and shuffles the last four lanes in place.
template <class T>
inline T lane_sum(Lanes<T, wide<T>> a) {
  Lanes<T, 8> eight;
  if constexpr (wide<T> == 16) {
    eight = halves_sum<T>(a);
  } else {
    eight = a;
  }
  Lanes<T, 4> four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
      __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
  four += __builtin_shufflevector(four, four, 1, 0, 3, 2);
  return four[0];
}

// A whole vector with `a` in the low lanes and zeros above.
template <class T, int N>
inline Lanes<T, wide<T>> widened(Lanes<T, N> a) {
  if constexpr (N == wide<T>) {
    return a;
  } else {
    return widened<T, 2 * N>(with_zeros<T, N>(a));
  }
}

}  // namespace iadd
