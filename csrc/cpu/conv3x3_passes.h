// The products of conv3x3, each pass over a range that one thread takes. U, V and M are Winograd's:
// transformed weights, inputs and products of 16 frequencies. The direct passes are the same with one
// frequency and patches of 9 C numbers; they serve first layers, whose few channels would leave a
// sum over one frequency a few terms long.
//
// Every block of rows goes through all its stages while it is in the L2 cache: the transformed
// tensors (4 times the images) never exist as a whole.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv3x3_blocks.h"
#include "conv3x3_gemm.h"
#include "scratch.h"

namespace iadd::conv3x3 {

constexpr int TERMS = 2;
constexpr int64_t FREQUENCIES = 16;

struct ThreadScratch {};
struct SharedScratch {};

// Bytes of transformed inputs in a block; with products and panels of weights they share an L2
// cache of 1 MiB.
constexpr int64_t BLOCK_BYTES = 1 << 19;

// Neighbouring rows and frequencies in different sets of the L1 cache: an odd number of vectors.
template <class T>
inline int64_t spread(int64_t count) {
  return (rounded_up(count, wide<T>) / wide<T> | 1) * wide<T>;
}

// Rows for blocks of at most `most` that divide a range evenly.
inline int64_t block_rows(int64_t count, int64_t most, int64_t step) {
  most = std::max(step, most / step * step);
  int64_t blocks = (count + most - 1) / most;
  return rounded_up((count + blocks - 1) / blocks, step);
}

// Where the nine weights of [Cout, Cin, 3, 3] stand for lane n and depth k of a product; that for the
// input's gradient swaps the channels and turns the taps.
template <class T>
struct Weights {
  const T* data[TERMS];
  int64_t outputs, inputs;
  bool turned;

  int64_t lanes() const { return turned ? inputs : outputs; }
  int64_t depth() const { return turned ? outputs : inputs; }
  int64_t place(int64_t n, int64_t k) const {
    return (turned ? k * inputs + n : n * inputs + k) * 9;
  }
};

// Sums over terms of images * weights, convolved, at every place of `out`.
template <class T>
struct Product {
  int terms;
  const T* images[TERMS];
  Images in, out;
  int64_t offset;
  Weights<T> weights;
  T* u;  // panel, frequency, depth, the panel's lanes
  T* to;

  // Depth of a product's sum: of one term, and of all.
  int64_t term_depth(bool direct) const {
    if (!direct) return padded<T>(in.channels);
    return weights.turned ? in.channels : 9 * in.channels;
  }
  int64_t depth(bool direct) const { return terms * term_depth(direct); }
  int64_t lanes(bool direct) const {
    return direct && weights.turned ? 9 * out.channels : out.channels;
  }
  int64_t frequencies(bool direct) const { return direct ? 1 : FREQUENCIES; }
};

template <class Tile, class T>
inline int64_t panels(int64_t lanes) {
  return (lanes + panel_lanes<Tile, T> - 1) / panel_lanes<Tile, T>;
}

// Largest number of lanes that u is padded to, whatever the tile.
template <class T>
inline int64_t padded_panels(int64_t lanes) {
  return rounded_up(lanes, 2 * wide<T>);
}

// U = G w G^T, for pairs (panel, row of u) begin .. end.
struct TransformWeights {
  template <class Tile, class T>
  static inline void run(const Product<T>& p, int64_t begin, int64_t end) {
    constexpr int L = lanes<Tile, T>;
    using V = Lanes<T, L>;
    const Weights<T>& w = p.weights;
    int64_t term_depth = p.term_depth(false), depth = p.depth(false);
    for (int64_t task = begin; task < end; ++task) {
      int64_t panel = task / depth, row = task % depth;
      int64_t term = row / term_depth, k = row % term_depth;
      for (int v = 0; v < Tile::vectors; ++v) {
        int64_t lane = panel * panel_lanes<Tile, T> + v * L;
        int64_t count = k < w.depth() ? std::min<int64_t>(L, w.lanes() - lane) : 0;
        alignas(64) T g[9][L];
        if (count < L) std::fill_n(g[0], 9 * L, T(0));
        for (int64_t l = 0; l < count; ++l) {
          const T* from = w.data[term] + w.place(lane + l, k);
#pragma GCC unroll 9
          for (int t = 0; t < 9; ++t) g[t][l] = from[w.turned ? 8 - t : t];
        }
        Four<V> columns[3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          columns[j] = weight_transform(load<L>(g[j]), load<L>(g[3 + j]), load<L>(g[6 + j]));
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          Four<V> out = weight_transform(columns[0].v[i], columns[1].v[i], columns[2].v[i]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            int64_t matrix = panel * FREQUENCIES + 4 * i + j;
            store(p.u + (matrix * depth + row) * panel_lanes<Tile, T> + v * L, out.v[j]);
          }
        }
      }
    }
  }
};

// The direct products' panels; a few thousand numbers. Ranges are of panels.
struct ArrangeWeights {
  template <class Tile, class T>
  static inline void run(const Product<T>& p, int64_t begin, int64_t end) {
    const Weights<T>& w = p.weights;
    int64_t term_depth = p.term_depth(true), depth = p.depth(true), count = p.lanes(true);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t row = 0; row < depth; ++row) {
        const T* from = w.data[row / term_depth];
        int64_t k = row % term_depth;
        for (int64_t l = 0; l < panel_lanes<Tile, T>; ++l) {
          int64_t lane = panel * panel_lanes<Tile, T> + l;
          // The side with nine taps is numbered tap * channels + channel.
          int64_t nine = w.turned ? lane : k, one = w.turned ? k : lane;
          int64_t place = (one * w.inputs + nine % w.inputs) * 9 + nine / w.inputs;
          p.u[(panel * depth + row) * panel_lanes<Tile, T> + l] = lane < count ? from[place] : T(0);
        }
      }
    }
  }
};

// Tiles begin .. end of the output.
struct WinogradProduct {
  template <class Tile, class T>
  static inline void run(const Product<T>& p, int64_t begin, int64_t end) {
    constexpr int64_t N = panel_lanes<Tile, T>;
    int64_t term_depth = p.term_depth(false), depth = p.depth(false);
    int64_t row = spread<T>(depth), bytes = FREQUENCIES * row * int64_t(sizeof(T));
    int64_t rows = block_rows(end - begin, BLOCK_BYTES / bytes, Tile::rows);
    Rows<T> v{nullptr, row, rows * row}, m{nullptr, N, rows * N + wide<T>};
    v.data = scratch<ThreadScratch, T>(FREQUENCIES * (v.frequency + m.frequency));
    m.data = v.data + FREQUENCIES * v.frequency;
    for (int64_t first = begin; first < end; first += rows) {
      int64_t count = std::min(rows, end - first);
      for (int term = 0; term < p.terms; ++term) {
        gather_patches<Tile>(p.images[term], p.in, p.out, p.offset, first, count,
                       Rows<T>{v.data + term * term_depth, v.row, v.frequency});
      }
      for (int64_t panel = 0; panel < panels<Tile, T>(p.out.channels); ++panel) {
        for (int64_t f = 0; f < FREQUENCIES; ++f) {
          const T* u = p.u + (panel * FREQUENCIES + f) * depth * N;
          for (int64_t t = 0; t < count; t += Tile::rows) {
            tile_product<Tile, false>(v.data + f * v.frequency + t * v.row, v.row, u, N, depth,
                                      m.data + f * m.frequency + t * N, N, false);
          }
        }
        scatter_tiles<Tile>(m, p.to, p.out, first, count, panel * N);
      }
    }
  }
};

// Pixels begin .. end of the output of few input channels.
struct DirectProduct {
  template <class Tile, class T>
  static inline void run(const Product<T>& p, int64_t begin, int64_t end) {
    constexpr int64_t N = panel_lanes<Tile, T>;
    int64_t term_depth = p.term_depth(true), depth = p.depth(true), row = spread<T>(depth);
    int64_t channels = p.out.channels;
    int64_t rows = block_rows(end - begin, 128, Tile::rows);
    T* v = scratch<ThreadScratch, T>(rows * row + Tile::rows * N);
    T* m = v + rows * row;
    for (int64_t first = begin; first < end; first += rows) {
      int64_t count = std::min(rows, end - first);
      for (int term = 0; term < p.terms; ++term) {
        gather_columns(p.images[term], p.in, p.out, p.offset, first, count, v + term * term_depth,
                       row);
      }
      for (int64_t t = 0; t < count; t += Tile::rows) {
        for (int64_t panel = 0; panel < panels<Tile, T>(channels); ++panel) {
          const T* u = p.u + panel * depth * N;
          T* to = p.to + (first + t) * channels + panel * N;
          int64_t width = std::min<int64_t>(N, channels - panel * N), left = count - t;
          if (width == N && left >= Tile::rows) {
            // The output's lines are fetched before they are written, two tiles of rows ahead.
            Ahead<T> ahead{p.to + (first + t + 2 * Tile::rows) * channels + panel * Tile::rows * N,
                           Tile::rows * N / depth};
            tile_product<Tile, false>(v + t * row, row, u, N, depth, to, channels, false, ahead);
            continue;
          }
          tile_product<Tile, false>(v + t * row, row, u, N, depth, m, N, false);
          for (int64_t r = 0; r < std::min<int64_t>(Tile::rows, left); ++r) {
            std::memcpy(to + r * channels, m + r * N, width * sizeof(T));
          }
        }
      }
    }
  }
};

// Rows of an image that one task of DirectInputGradient fills.
constexpr int64_t BAND = 32;

inline int64_t bands(const Images& shape) { return (shape.height + BAND - 1) / BAND; }

// Bands begin .. end of the gradient of images with few channels.
struct DirectInputGradient {
  template <class Tile, class T>
  static inline void run(const Product<T>& p, int64_t begin, int64_t end) {
    constexpr int64_t N = panel_lanes<Tile, T>, BLOCK = 48;
    int64_t term_depth = p.term_depth(true), depth = p.depth(true), row = spread<T>(depth);
    int64_t columns_row = spread<T>(panels<Tile, T>(p.lanes(true)) * N);
    int64_t most = rounded_up((BAND + 2) * p.in.width, Tile::rows);
    T* v = scratch<ThreadScratch, T>(BLOCK * row + most * columns_row);
    T* columns = v + BLOCK * row;
    for (int64_t task = begin; task < end; ++task) {
      int64_t sample = task / bands(p.out), first_row = task % bands(p.out) * BAND;
      int64_t last_row = std::min(first_row + BAND, p.out.height);
      int64_t top = std::clamp<int64_t>(first_row + p.offset - 2, 0, p.in.height);
      int64_t bottom = std::clamp<int64_t>(last_row + p.offset, top, p.in.height);
      int64_t pixels = (bottom - top) * p.in.width;
      for (int64_t first = 0; first < pixels; first += BLOCK) {
        int64_t count = std::min(BLOCK, pixels - first);
        for (int term = 0; term < p.terms; ++term) {
          const T* from = p.images[term] + (sample * p.in.pixels() + top * p.in.width + first) *
              p.in.channels;
          for (int64_t i = 0; i < count; ++i) {
            std::memcpy(v + i * row + term * term_depth, from + i * p.in.channels,
                        p.in.channels * sizeof(T));
          }
        }
        for (int64_t t = 0; t < count; t += Tile::rows) {
          Ahead<T> ahead{p.images[0] + (sample * p.in.pixels() + top * p.in.width + first + t +
                                        BLOCK) * p.in.channels,
                         Tile::rows / p.terms};
          for (int64_t panel = 0; panel < panels<Tile, T>(p.lanes(true)); ++panel) {
            tile_product<Tile, false>(v + t * row, row, p.u + panel * depth * N, N, depth,
                                      columns + (first + t) * columns_row + panel * N, columns_row,
                                      false, ahead);
          }
        }
      }
      add_columns(columns, columns_row, p.in, top, bottom,
                  p.to + sample * p.out.pixels() * p.out.channels, p.out, p.offset, first_row,
                  last_row);
    }
  }
};

}  // namespace iadd::conv3x3
