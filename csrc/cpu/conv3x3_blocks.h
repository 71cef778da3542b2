// Between images [N, H, W, C] and the rows of the matrices that conv3x3 multiplies: a row is a tile
// (or a pixel), its columns are channels. Lanes are channels throughout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv3x3.h"
#include "conv3x3_gemm.h"
#include "lanes.h"

namespace iadd::conv3x3 {

struct Images {
  int64_t samples, height, width, channels;

  int64_t pixels() const { return height * width; }
  int64_t tiles_down() const { return (height + 1) / 2; }
  int64_t tiles_across() const { return (width + 1) / 2; }
  int64_t tiles() const { return samples * tiles_down() * tiles_across(); }
};

// A matrix of one frequency, and the distance to that of the next.
template <class T>
struct Rows {
  T* data;
  int64_t row, frequency;
};

// Channels of transformed images: as many as every instruction set has whole vectors of.
template <class T>
inline int64_t padded(int64_t channels) {
  return rounded_up(channels, wide<T>);
}

// The first `count` of L numbers, and zeros.
template <int L, class T>
inline Lanes<T, L> load_lanes(const T* from, int64_t count) {
  if (count >= L) return load<L>(from);
  Lanes<T, L> lanes{};
  if (count > 0) std::memcpy(&lanes, from, count * sizeof(T));
  return lanes;
}

template <int L, class T>
inline void store_lanes(T* to, const Lanes<T, L>& lanes, int64_t count) {
  if (count >= L) {
    store(to, lanes);
  } else if (count > 0) {
    std::memcpy(to, &lanes, count * sizeof(T));
  }
}

// Calls run(sample, row, column, count, done) for each piece of the range first .. first + count of
// a grid of down x across places a sample that lies in one row of it.
template <class Run>
inline void for_rows(int64_t first, int64_t count, int64_t down, int64_t across, const Run& run) {
  int64_t column = first % across, row = first / across % down, sample = first / across / down;
  for (int64_t done = 0; done < count;) {
    int64_t length = std::min(count - done, across - column);
    run(sample, row, column, length, done);
    done += length;
    column = 0;
    if (++row == down) {
      row = 0;
      ++sample;
    }
  }
}

// One row of an image, or zeros outside of it: a pixel is `step` behind its neighbour.
template <class T>
struct ImageRow {
  const T* data;
  int64_t step;
};

template <class T>
inline ImageRow<T> image_row(const T* image, const Images& shape, int64_t sample, int64_t row,
                             int64_t channel) {
  alignas(64) static const T zeros[wide<T>] = {};
  if (row < 0 || row >= shape.height) return {zeros, 0};
  return {image + (sample * shape.height + row) * shape.width * shape.channels + channel,
          shape.channels};
}

// B^T d B of the 4x4 patches at (2 row - offset, 2 column - offset) of the tiles first .. first +
// count. Neighbours share half a patch, so the transform down the columns is carried along.
template <class Tile, class T>
inline void gather_patches(const T* image, const Images& shape, const Images& tiled,
                           int64_t offset, int64_t first, int64_t count, const Rows<T>& to) {
  constexpr int L = lanes<Tile, T>;
  using V = Lanes<T, L>;
  for (int64_t channel = 0; channel < padded<T>(shape.channels); channel += L) {
    int64_t left = shape.channels - channel;
    for_rows(first, count, tiled.tiles_down(), tiled.tiles_across(),
             [&](int64_t sample, int64_t row, int64_t column, int64_t length, int64_t done) {
      ImageRow<T> rows[4];
      for (int i = 0; i < 4; ++i) {
        rows[i] = image_row(image, shape, sample, 2 * row - offset + i, channel);
      }
      auto transformed = [&](int64_t x) -> Four<V> {
        if (x < 0 || x >= shape.width) return {};
        V d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) d[i] = load_lanes<L>(rows[i].data + x * rows[i].step, left);
        return input_transform(d[0], d[1], d[2], d[3]);
      };
      int64_t x = 2 * column - offset;
      Four<V> a = transformed(x), b = transformed(x + 1);
      T* at = to.data + done * to.row + channel;
      for (int64_t i = 0; i < length; ++i, x += 2, at += to.row) {
        Four<V> c = transformed(x + 2), d = transformed(x + 3);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          Four<V> out = input_transform(a.v[r], b.v[r], c.v[r], d.v[r]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) store(at + (4 * r + j) * to.frequency, out.v[j]);
        }
        a = c;
        b = d;
      }
    });
  }
}

// A d A^T of the 2x2 tiles of gradients: the transpose of scatter_tiles.
template <class Tile, class T>
inline void gather_tiles(const T* image, const Images& shape, int64_t first, int64_t count,
                         const Rows<T>& to) {
  constexpr int L = lanes<Tile, T>;
  using V = Lanes<T, L>;
  for (int64_t channel = 0; channel < padded<T>(shape.channels); channel += L) {
    int64_t left = shape.channels - channel;
    for_rows(first, count, shape.tiles_down(), shape.tiles_across(),
             [&](int64_t sample, int64_t row, int64_t column, int64_t length, int64_t done) {
      ImageRow<T> up = image_row(image, shape, sample, 2 * row, channel);
      ImageRow<T> down = image_row(image, shape, sample, 2 * row + 1, channel);
      auto transformed = [&](int64_t x) -> Four<V> {
        if (x >= shape.width) return {};
        return output_transposed(load_lanes<L>(up.data + x * up.step, left),
                                 load_lanes<L>(down.data + x * down.step, left));
      };
      T* at = to.data + done * to.row + channel;
      for (int64_t i = 0; i < length; ++i, at += to.row) {
        int64_t x = 2 * (column + i);
        Four<V> a = transformed(x), b = transformed(x + 1);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          Four<V> out = output_transposed(a.v[r], b.v[r]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) store(at + (4 * r + j) * to.frequency, out.v[j]);
        }
      }
    });
  }
}

// A^T m A of the tiles first .. first + count to their pixels, for a panel of channels
// from `channel` on.
template <class Tile, class T>
inline void scatter_tiles(const Rows<T>& from, T* image, const Images& shape, int64_t first,
                          int64_t count, int64_t channel) {
  constexpr int L = lanes<Tile, T>;
  using V = Lanes<T, L>;
  for_rows(first, count, shape.tiles_down(), shape.tiles_across(),
           [&](int64_t sample, int64_t row, int64_t column, int64_t length, int64_t done) {
    bool lower = 2 * row + 1 < shape.height;
    for (int v = 0; v < Tile::vectors; ++v) {
      int64_t left = shape.channels - channel - v * L;
      if (left <= 0) break;
      int64_t step = shape.channels, line = shape.width * shape.channels;
      T* to = image + ((sample * shape.height + 2 * row) * shape.width + 2 * column) * step +
          channel + v * L;
      const T* at = from.data + done * from.row + v * L;
      for (int64_t i = 0; i < length; ++i, at += from.row, to += 2 * step) {
        Two<V> half[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const T* m = at + j * from.frequency;
          half[j] = output_transform(load<L>(m), load<L>(m + 4 * from.frequency),
                                     load<L>(m + 8 * from.frequency),
                                     load<L>(m + 12 * from.frequency));
        }
        bool right = 2 * (column + i) + 1 < shape.width;
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
          if (r == 1 && !lower) break;
          Two<V> out = output_transform(half[0].v[r], half[1].v[r], half[2].v[r], half[3].v[r]);
          store_lanes<L>(to + r * line, out.v[0], left);
          if (right) store_lanes<L>(to + r * line + step, out.v[1], left);
        }
      }
    }
  });
}

// The 3x3 patches at (row - offset, column - offset) of the pixels first .. first + count of
// `tiled`: column (3 i + j) C + c of a matrix row.
template <class T>
inline void gather_columns(const T* image, const Images& shape, const Images& tiled,
                           int64_t offset, int64_t first, int64_t count, T* to, int64_t to_row) {
  int64_t channels = shape.channels, span = 3 * channels;
  for_rows(first, count, tiled.height, tiled.width,
           [&](int64_t sample, int64_t row, int64_t column, int64_t length, int64_t done) {
    for (int i = 0; i < 3; ++i) {
      int64_t y = row - offset + i;
      bool inside = y >= 0 && y < shape.height;
      const T* line = image + (sample * shape.height + (inside ? y : 0)) * shape.width * channels;
      T* at = to + done * to_row + i * span;
      for (int64_t p = 0; p < length; ++p, at += to_row) {
        int64_t x = column + p - offset;
        if (inside && x >= 0 && x + 3 <= shape.width) {
          const T* pixel = line + x * channels;
          for (int64_t c = 0; c < span; ++c) at[c] = pixel[c];
          continue;
        }
        for (int64_t j = 0; j < 3; ++j) {
          bool there = inside && x + j >= 0 && x + j < shape.width;
          for (int64_t c = 0; c < channels; ++c) {
            at[j * channels + c] = there ? line[(x + j) * channels + c] : T(0);
          }
        }
      }
    }
  });
}

// The transpose: adds up, for the rows begin .. end of one image, what the pixels of `tiled` from
// its row `tiled_begin` to `tiled_end` have for them in their columns.
template <class T>
inline void add_columns(const T* columns, int64_t columns_row, const Images& tiled,
                        int64_t tiled_begin, int64_t tiled_end, T* image, const Images& shape,
                        int64_t offset, int64_t begin, int64_t end) {
  int64_t channels = shape.channels;
  for (int64_t y = begin; y < end; ++y) {
    T* line = image + y * shape.width * channels;
    std::fill_n(line, shape.width * channels, T(0));
    for (int64_t i = 0; i < 3; ++i) {
      int64_t row = y + offset - i;
      if (row < tiled_begin || row >= tiled_end) continue;
      for (int64_t j = 0; j < 3; ++j) {
        int64_t shift = offset - j;
        int64_t from = std::max<int64_t>(0, -shift);
        int64_t to = std::min(shape.width, tiled.width - shift);
        const T* at = columns +
            ((row - tiled_begin) * tiled.width + from + shift) * columns_row +
            (3 * i + j) * channels;
        for (int64_t x = from; x < to; ++x, at += columns_row) {
          for (int64_t c = 0; c < channels; ++c) line[x * channels + c] += at[c];
        }
      }
    }
  }
}

}  // namespace iadd::conv3x3
