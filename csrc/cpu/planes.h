// The two ways to lay pixels into vector lanes, behind one interface, so that an operator on planes
// is written once:
//
//   Planar        [N, C, H, W]: lanes are pixels of one plane, a plane's constants are numbers
//   ChannelsLast  [N, H, W, C]: lanes are channels at one pixel, constants are vectors
//
// Both visit pixels through an accessor `at`: at(x) loads x there, at.up(dp) loads the cotangent
// there (for a pooled one: a quarter of the pooled value; zero in a last odd row or column).
#pragma once

#include "lanes.h"

namespace iadd {

struct PlaneShape {
  int64_t height, width, channels;
  bool pool;

  double window_share() const { return pool ? 0.25 : 1.0; }
  int64_t pixels() const { return height * width; }
  int64_t pooled_height() const { return pool ? height / 2 : height; }
  int64_t pooled_width() const { return pool ? width / 2 : width; }
  int64_t pooled_pixels() const { return pooled_height() * pooled_width(); }
};

template <class T>
struct Planar {
  static constexpr int N = wide<T>;
  using Constant = T;

  PlaneShape shape;

  // Lanes of the narrower chunks at a row's end are added into the low lanes of one accumulator.
  template <int K>
  struct Sums {
    Lanes<T, N> wide[K] = {};
    T tail[K] = {};

    template <class A>
    void add(A, int which, Lanes<T, A::lanes> value) {
      if constexpr (A::lanes == 1) {
        tail[which] += value;
      } else {
        wide[which] += widened<T, A::lanes>(value);
      }
    }
    void add_wide(const Sums& other) {
      for (int k = 0; k < K; ++k) wide[k] += other.wide[k];
    }
    void totals(T (&to)[K]) const {
      for (int k = 0; k < K; ++k) to[k] = lane_sum<T>(wide[k]) + tail[k];
    }
  };

  template <int M>
  struct At {
    static constexpr int lanes = M;
    int64_t pixel, pooled;  // pooled < 0: no cotangent reaches this place
    bool pool;

    Lanes<T, M> operator()(const T* x) const { return load<M>(x + pixel); }
    Lanes<T, M> up(const T* dp) const {
      if (!pool) return load<M>(dp + pixel);
      if (pooled < 0) return Lanes<T, M>{};
      if constexpr (M == 1) {
        return dp[pooled] * T(0.25);
      } else {
        return doubled<T, M / 2>(load<M / 2>(dp + pooled) * T(0.25));
      }
    }
    void store(T* x, Lanes<T, M> value) const { iadd::store(x + pixel, value); }
    void prefetch(const T* x) const { __builtin_prefetch(x + pixel); }
  };

  // Two rows of eight pixels at once: one would leave half of the lanes empty.
  struct AtRowPair : At<N> {
    Lanes<T, N> up(const T* dp) const {
      return repeated<T>(doubled<T, 4>(load<4>(dp + this->pooled) * T(0.25)));
    }
  };

  static T constant(const T* values, int64_t channel, T missing) {
    return values ? values[channel] : missing;
  }
  static void keep(T* to, T value) { *to = value; }

  // Four accumulators a sum: one add would wait for the other.
  template <int K, class F>
  void flat_sums(T (&totals)[K], F f) const {
    Sums<K> part[4];
    int64_t pixel = 0, count = shape.pixels();
    for (; pixel + 4 * N <= count; pixel += 4 * N) {
      for (int unrolled = 0; unrolled < 4; ++unrolled) {
        f(At<N>{pixel + unrolled * N, -1, false}, part[unrolled]);
      }
    }
    for (; pixel + N <= count; pixel += N) f(At<N>{pixel, -1, false}, part[0]);
    for (; pixel < count; ++pixel) f(At<1>{pixel, -1, false}, part[0]);
    part[0].add_wide(part[1]);
    part[2].add_wide(part[3]);
    part[0].add_wide(part[2]);
    part[0].totals(totals);
  }

  template <class F>
  void each(F f) const {
    if (!shape.pool) {
      int64_t pixel = 0, count = shape.pixels();
      for (; pixel + N <= count; pixel += N) f(At<N>{pixel, pixel, false});
      for (; pixel < count; ++pixel) f(At<1>{pixel, pixel, false});
      return;
    }
    if constexpr (N == 16) {
      if (shape.width == 8 && shape.height % 2 == 0) {
        for (int64_t pair = 0; pair < shape.height / 2; ++pair) {
          f(AtRowPair{{pair * N, pair * 4, true}});
        }
        return;
      }
    }
    for (int64_t row = 0; row < shape.height; ++row) {
      bool reached = row / 2 < shape.pooled_height();
      int64_t pixel = row * shape.width;
      int64_t pooled = reached ? (row / 2) * shape.pooled_width() : INT64_MIN / 2;
      int64_t column = 0;
      auto chunks = [&]<int M>() {
        for (; column + M <= shape.width; column += M) {
          f(At<M>{pixel + column, pooled + column / 2, true});
        }
      };
      if constexpr (N == 16) chunks.template operator()<16>();
      if (column == shape.width) continue;
      chunks.template operator()<8>();
      chunks.template operator()<4>();
      chunks.template operator()<2>();
      if (column < shape.width) f(At<1>{pixel + column, -1, true});
    }
  }

  template <int K, class F>
  void sums(T (&totals)[K], F f) const {
    Sums<K> part;
    each([&](auto at) { f(at, part); });
    part.totals(totals);
  }

  // Where the windows fill whole vectors; false where they do not.
  template <class F>
  bool whole_window_sums(T* p, F f) const {
    auto value = [&](int64_t pixel) -> Lanes<T, N> { return f(At<N>{pixel, 0, false}); };
    if (shape.width == 8 && shape.height % 4 == 0) {
      for (int64_t pixel = 0; pixel < shape.pixels(); pixel += 2 * N) {
        iadd::store(p + pixel / 4, row_pair_sums<T>(value(pixel), value(pixel + N)));
      }
      return true;
    }
    // Two vectors of column sums make one of window sums: the halves of a pair of rows, or, where a
    // row is one vector, the next pair of rows.
    bool halves = shape.width % (2 * N) == 0 && shape.height % 2 == 0;
    if (halves || (shape.width == N && shape.height % 4 == 0)) {
      int64_t next = halves ? N : 2 * shape.width;
      int64_t rows = halves ? 2 : 4, columns = halves ? shape.width : N;
      for (int64_t row = 0; row < shape.height; row += rows) {
        for (int64_t column = 0; column < columns; column += 2 * N) {
          int64_t pixel = row * shape.width + column, lower = pixel + shape.width;
          Lanes<T, N> first = value(pixel) + value(lower);
          Lanes<T, N> second = value(pixel + next) + value(lower + next);
          iadd::store(p + row * shape.width / 4 + column / 2, pair_sums<T>(first, second));
        }
      }
      return true;
    }
    return false;
  }

  // p = the sums of f over the windows of the pool, or f itself without one. A caller scales f by
  // window_share(), which costs it nothing.
  template <class F>
  void window_sums(T* p, F f) const {
    if (!shape.pool) {
      each([&](auto at) { at.store(p, f(at)); });
      return;
    }
    if constexpr (N == 16) {
      if (whole_window_sums(p, f)) return;
    }
    for (int64_t row = 0; row < shape.pooled_height(); ++row) {
      int64_t upper = 2 * row * shape.width, lower = upper + shape.width;
      T* out = p + row * shape.pooled_width();
      int64_t column = 0;
      auto chunks = [&]<int M>() {
        for (; column + M <= shape.width; column += M) {
          Lanes<T, M> both =
              f(At<M>{upper + column, 0, false}) + f(At<M>{lower + column, 0, false});
          iadd::store(out + column / 2, pair_sums<T, M>(both));
        }
      };
      if constexpr (N == 16) chunks.template operator()<16>();
      if (column == shape.width) continue;
      chunks.template operator()<8>();
      chunks.template operator()<4>();
      chunks.template operator()<2>();
    }
  }
};

// The inputs z and zdot of M channels are copied out of the sample first, pixel after pixel: at
// their stride of C numbers the lines of a sample fall into few sets of the cache and evict each
// other.
// Pooled values and the output stay where they are.
template <class T, int M>
struct ChannelsLast {
  using Constant = Lanes<T, M>;

  PlaneShape shape;

  template <int K>
  struct Sums {
    Lanes<T, M> total[K] = {};

    template <class A>
    void add(A, int which, Lanes<T, M> value) {
      total[which] += value;
    }
    void add(const Sums& other) {
      for (int k = 0; k < K; ++k) total[k] += other.total[k];
    }
    void totals(Constant (&to)[K]) const {
      for (int k = 0; k < K; ++k) to[k] = total[k];
    }
  };

  struct At {
    static constexpr int lanes = M;
    int64_t pixel, pooled;  // indices of pixels; pooled < 0: no cotangent reaches this place
    int64_t channels;
    bool pool;

    Lanes<T, M> operator()(const T* dense) const { return load<M>(dense + pixel * M); }
    Lanes<T, M> up(const T* dp) const {
      if (pooled < 0) return Lanes<T, M>{};
      return load<M>(dp + pooled * channels) * T(pool ? 0.25 : 1);
    }
    void store(T* x, Lanes<T, M> value) const { iadd::store(x + pixel * channels, value); }
    void prefetch(const T*) const {}
  };

  static Constant constant(const T* values, int64_t channel, T missing) {
    return values ? load<M>(values + channel) : fill<T, M>(missing);
  }
  static void keep(T* to, Constant value) { iadd::store(to, value); }

  void copy_in(const T* from, T* dense) const {
    int64_t count = shape.pixels();
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      iadd::store(dense + pixel * M, load<M>(from + pixel * shape.channels));
    }
  }

  // Four accumulators a sum: one add would wait for the other.
  template <int K, class F>
  void flat_sums(Constant (&totals)[K], F f) const {
    Sums<K> part[4];
    int64_t pixel = 0, count = shape.pixels();
    for (; pixel + 4 <= count; pixel += 4) {
      for (int unrolled = 0; unrolled < 4; ++unrolled) {
        f(At{pixel + unrolled, -1, 0, false}, part[unrolled]);
      }
    }
    for (; pixel < count; ++pixel) f(At{pixel, -1, 0, false}, part[0]);
    part[0].add(part[1]);
    part[2].add(part[3]);
    part[0].add(part[2]);
    part[0].totals(totals);
  }

  template <class F>
  void each(F f) const {
    int64_t pooled_width = shape.pooled_width(), factor = shape.pool ? 2 : 1;
    for (int64_t row = 0; row < shape.height; ++row) {
      int64_t pooled_row = row / factor;
      for (int64_t column = 0; column < shape.width; ++column) {
        bool reached = pooled_row < shape.pooled_height() && column / factor < pooled_width;
        int64_t pooled = reached ? pooled_row * pooled_width + column / factor : -1;
        f(At{row * shape.width + column, pooled, shape.channels, shape.pool});
      }
    }
  }

  template <int K, class F>
  void sums(Constant (&totals)[K], F f) const {
    Sums<K> part;
    each([&](auto at) { f(at, part); });
    part.totals(totals);
  }

  template <class F>
  void window_sums(T* p, F f) const {
    auto value = [&](int64_t pixel) { return f(At{pixel, -1, shape.channels, false}); };
    if (!shape.pool) {
      each([&](auto at) { at.store(p, f(at)); });
      return;
    }
    for (int64_t row = 0; row < shape.pooled_height(); ++row) {
      for (int64_t column = 0; column < shape.pooled_width(); ++column) {
        int64_t upper = 2 * row * shape.width + 2 * column, lower = upper + shape.width;
        Lanes<T, M> left = value(upper) + value(lower);
        Lanes<T, M> right = value(upper + 1) + value(lower + 1);
        int64_t place = (row * shape.pooled_width() + column) * shape.channels;
        iadd::store(p + place, left + right);
      }
    }
  }
};

}  // namespace iadd
