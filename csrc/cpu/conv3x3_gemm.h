// The matrix products of conv3x3. One register tile of ROWS x VECTORS vectors stays in registers
// over the whole sum; each step of the sum loads VECTORS vectors of B and broadcasts ROWS numbers of
// A. The tile fits the instruction set: 16 accumulators of 32 registers, 12 or 8 of 16. Its vectors
// are the machine's own, as GCC keeps wider ones, which it has to split, in memory.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace iadd::conv3x3 {

template <int ROWS, int VECTORS, int BYTES>
struct Tile {
  static constexpr int rows = ROWS, vectors = VECTORS, bytes = BYTES;
};

// Numbers in a vector of a tile, and in a row of one: the width of a panel of B.
template <class Tile, class T>
constexpr int lanes = Tile::bytes / sizeof(T);
template <class Tile, class T>
constexpr int panel_lanes = Tile::vectors * lanes<Tile, T>;

// Memory that is needed next: each step of a sum asks for one line of it.
template <class T>
struct Ahead {
  const T* from;
  int64_t step;
};

// C[r, :] (+)= sum over k < depth of A[r, k] B[k, :] for a tile's rows and columns; A lies as it is
// written here, or transposed.
template <class Tile, bool A_TRANSPOSED, class T>
inline void tile_product(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth, T* c,
                         int64_t ldc, bool accumulate, Ahead<T> ahead = {}) {
  constexpr int R = Tile::rows, N = Tile::vectors, L = lanes<Tile, T>;
  using V = Lanes<T, L>;
  V sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[r][v] = V{};
      if (accumulate) __builtin_prefetch(c + r * ldc + v * L, 1);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (ahead.from) __builtin_prefetch(ahead.from + k * ahead.step, 0, 2);
    V column[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) column[v] = load<L>(b + k * ldb + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      T number = A_TRANSPOSED ? a[k * lda + r] : a[r * lda + k];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][v] += column[v] * number;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      T* to = c + r * ldc + v * L;
      store(to, accumulate ? sum[r][v] + load<L>(to) : sum[r][v]);
    }
  }
}

inline int64_t rounded_up(int64_t count, int64_t step) {
  return (count + step - 1) / step * step;
}

}  // namespace iadd::conv3x3
