// The weights' gradient of conv3x3. Its sum runs over tiles (or pixels), in blocks that stay in the
// L2 cache; each thread adds them to a sum of its own, and the sums are added in order: the result
// has the same bits for the same number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv3x3_passes.h"

namespace iadd::conv3x3 {

// Bytes of a block: it holds both factors, and no panels of weights are beside it.
constexpr int64_t GRADIENT_BLOCK_BYTES = 3 << 18;

// The weights' gradient: the sum over terms and tiles (or pixels) of images^T gradients.
template <class T>
struct WeightGradient {
  int terms;
  const T *images[TERMS], *gradients[TERMS];
  Images in, out;
  int64_t offset;
  int64_t chunks;  // ranges of tiles (pixels), summed by themselves and added in their order
  T* sums;  // chunk, frequency, panel of output channels, input row, the panel's lanes
  T* to;

  // Whole tiles of 8, of 6 and of 4 rows.
  int64_t rows(bool direct) const {
    return rounded_up(direct ? 9 * in.channels : in.channels, 24);
  }
  int64_t matrix(bool direct) const { return rows(direct) * padded_panels<T>(out.channels); }
  int64_t places(bool direct) const { return direct ? out.samples * out.pixels() : out.tiles(); }
};

template <class Tile, bool DIRECT, class T>
inline void weight_gradient(const WeightGradient<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t N = panel_lanes<Tile, T>;
  constexpr int64_t F = DIRECT ? 1 : FREQUENCIES;
  int64_t in_rows = p.rows(DIRECT), used = DIRECT ? 9 * p.in.channels : p.in.channels;
  int64_t count_panels = panels<Tile, T>(p.out.channels);
  int64_t v_row = spread<T>(in_rows), y_row = spread<T>(count_panels * N);
  int64_t bytes = F * (v_row + y_row) * int64_t(sizeof(T));
  int64_t places = p.places(DIRECT);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    int64_t chunk_begin = places * chunk / p.chunks, chunk_end = places * (chunk + 1) / p.chunks;
    int64_t most = DIRECT ? 64 : std::max<int64_t>(8, GRADIENT_BLOCK_BYTES / bytes);
    int64_t rows = block_rows(chunk_end - chunk_begin, most, 1);
    Rows<T> v{nullptr, v_row, rows * v_row}, y{nullptr, y_row, rows * y_row};
    v.data = scratch<ThreadScratch, T>(F * (v.frequency + y.frequency));
    y.data = v.data + F * v.frequency;
    T* sums = p.sums + chunk * F * p.matrix(DIRECT);
    bool accumulate = false;
    for (int term = 0; term < p.terms; ++term) {
      for (int64_t first = chunk_begin; first < chunk_end; first += rows) {
        int64_t count = std::min(rows, chunk_end - first);
        if constexpr (DIRECT) {
          gather_columns(p.images[term], p.in, p.out, p.offset, first, count, v.data, v_row);
          for (int64_t i = 0; i < count; ++i) {
            std::memcpy(y.data + i * y_row, p.gradients[term] + (first + i) * p.out.channels,
                        p.out.channels * sizeof(T));
          }
        } else {
          gather_patches<Tile>(p.images[term], p.in, p.out, p.offset, first, count, v);
          gather_tiles<Tile>(p.gradients[term], p.out, first, count, y);
        }
        Ahead<T> ahead{};
        if constexpr (DIRECT) {
          int64_t steps = count_panels * (used / Tile::rows) + 1;
          ahead = {p.gradients[term] + (first + rows) * p.out.channels,
                   std::max<int64_t>(1, p.out.channels / steps)};
        }
        for (int64_t f = 0; f < F; ++f) {
          for (int64_t panel = 0; panel < count_panels; ++panel) {
            T* to = sums + f * p.matrix(DIRECT) + panel * in_rows * N;
            for (int64_t r = 0; r < used; r += Tile::rows) {
              tile_product<Tile, true>(v.data + f * v.frequency + r, v_row,
                                       y.data + f * y.frequency + panel * N, y_row, count,
                                       to + r * N, N, accumulate, ahead);
              ahead.from += count * ahead.step;
            }
          }
        }
        accumulate = true;
      }
    }
  }
}

// Chunks begin .. end.
struct WinogradWeightGradient {
  template <class Tile, class T>
  static inline void run(const WeightGradient<T>& p, int64_t begin, int64_t end) {
    weight_gradient<Tile, false>(p, begin, end);
  }
};

struct DirectWeightGradient {
  // Patches have a multiple of nine numbers, and 32 registers take nine rows of two vectors.
  template <class Wide>
  using Nine = std::conditional_t<Wide::rows == 8, Tile<9, Wide::vectors, Wide::bytes>, Wide>;

  template <class Tile, class T>
  static inline void run(const WeightGradient<T>& p, int64_t begin, int64_t end) {
    weight_gradient<Nine<Tile>, true>(p, begin, end);
  }
};

// The chunks' sum for one vector of a frequency's matrix.
template <int L, class T>
inline Lanes<T, L> chunk_sum(const T* from, int64_t chunks, int64_t distance) {
  Lanes<T, L> sum = load<L>(from);
  for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load<L>(from + chunk * distance);
  return sum;
}

// dw = G^T dU G, for pairs (vector of output channels, input channel) begin .. end.
struct FinishWinograd {
  template <class Tile, class T>
  static inline void run(const WeightGradient<T>& p, int64_t begin, int64_t end) {
    constexpr int L = lanes<Tile, T>;
    constexpr int64_t N = panel_lanes<Tile, T>;
    using V = Lanes<T, L>;
    int64_t matrix = p.matrix(false);
    for (int64_t task = begin; task < end; ++task) {
      int64_t lane = task / p.in.channels * L, k = task % p.in.channels;
      const T* from = p.sums + (lane / N * p.rows(false) + k) * N + lane % N;
      Three<V> columns[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        V u[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          u[i] = chunk_sum<L>(from + (4 * i + j) * matrix, p.chunks, FREQUENCIES * matrix);
        }
        columns[j] = weight_transposed(u[0], u[1], u[2], u[3]);
      }
      int64_t count = std::min<int64_t>(L, p.out.channels - lane);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        Three<V> out = weight_transposed(columns[0].v[i], columns[1].v[i], columns[2].v[i],
                                         columns[3].v[i]);
        for (int64_t l = 0; l < count; ++l) {
          T* to = p.to + ((lane + l) * p.in.channels + k) * 9 + 3 * i;
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) to[j] = out.v[j][l];
        }
      }
    }
  }
};

struct FinishDirect {
  template <class Tile, class T>
  static inline void run(const WeightGradient<T>& p, int64_t begin, int64_t end) {
    constexpr int L = lanes<Tile, T>;
    constexpr int64_t N = panel_lanes<Tile, T>;
    int64_t matrix = p.matrix(true), channels = p.in.channels;
    for (int64_t task = begin; task < end; ++task) {
      int64_t lane = task / channels * L, k = task % channels;
      for (int64_t tap = 0; tap < 9; ++tap) {
        Lanes<T, L> sum = chunk_sum<L>(
            p.sums + (lane / N * p.rows(true) + tap * channels + k) * N + lane % N, p.chunks,
            matrix);
        for (int64_t l = 0; l < std::min<int64_t>(L, p.out.channels - lane); ++l) {
          p.to[((lane + l) * channels + k) * 9 + tap] = sum[l];
        }
      }
    }
  }
};

}  // namespace iadd::conv3x3
