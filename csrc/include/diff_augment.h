// Differentiable siamese augmentation: the arithmetic of one family on one sample.
//
// A Stage holds a family's parameters for one sample. Every family is affine in the pixels; the
// adjoint of a stage is written as a gather too, so that no pixel is written twice and the sums
// have one order. The formulas stand in iadd_fast/reference/diff_augment.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "host_device.h"
#include "philox.h"

namespace iadd::diff_augment {

constexpr int kMaxFamilies = 8;

enum Family : int { kColor, kCrop, kCutout, kFlip, kScale, kRotate, kFamilies };

struct Shape {
  int channels, height, width;

  IADD_HD int plane() const { return height * width; }
  IADD_HD int elements() const { return channels * height * width; }
};

// The chain of a call, as a kernel takes it.
struct Chain {
  int count;
  int family[kMaxFamilies];
  bool shared, linear;
};

inline Chain chain_of(const std::vector<int64_t>& families, bool shared, bool linear) {
  if (families.size() > kMaxFamilies) {
    throw std::runtime_error("diff_augment: a chain takes at most 8 families");
  }
  Chain chain{static_cast<int>(families.size()), {}, shared, linear};
  for (int i = 0; i < chain.count; ++i) {
    if (families[i] < 0 || families[i] >= kFamilies) {
      throw std::runtime_error("diff_augment: a family is a number from 0 to 5");
    }
    chain.family[i] = static_cast<int>(families[i]);
  }
  return chain;
}

inline Shape shape_of(int64_t channels, int64_t height, int64_t width) {
  // Half of what an int holds: a loop's counter passes the end by its step.
  if (channels * height * width > (int64_t{1} << 30)) {
    throw std::runtime_error("diff_augment: one sample has more than 2^30 elements");
  }
  return {static_cast<int>(channels), static_cast<int>(height), static_cast<int>(width)};
}

struct Span {
  int begin, end;

  IADD_HD bool holds(int place) const { return place >= begin && place < end; }
};

template <class T>
struct Matrix {
  T xx, xy, yx, yy;
};

template <class T>
struct Color {
  T brightness, saturation, contrast;
};

// Crop, cutout and flip.
struct Move {
  int family;
  bool mirrored;
  Span rows, columns;    // crop: the places that receive a pixel; cutout: the window
  int shift_y, shift_x;  // crop: where they receive it from
};

// Scale and rotate. `map` takes an output place to its source, both counted from the centre. A
// pixel is gathered from taps_y x taps_x pixels; the first is where `window` (that map or, for the
// adjoint, its inverse) takes the pixel's place, less `reach`, rounded up.
template <class T>
struct Resample {
  Matrix<T> map, window;
  T centre_y, centre_x, reach_y, reach_x;
  int taps_y, taps_x;
};

template <class T>
struct Stage {
  int family;
  Color<T> color;
  Move move;
  Resample<T> resample;
};

template <class T>
IADD_HD T absolute(T value) {
  return value < T(0) ? -value : value;
}

IADD_HD Span shifted_span(int length, int shift) {
  return {shift < 0 ? -shift : 0, shift > 0 ? length - shift : length};
}

IADD_HD Span cutout_span(uint32_t word, int length) {
  int size = (length + 1) / 2;
  int first = integer(word, 0, length - size % 2) - size / 2;
  return {first < 0 ? 0 : first, first + size > length ? length : first + size};
}

// The matrix acts on coordinates that run from -1 to 1 along each side, as `affine_grid` has them;
// in pixels its off-diagonal entries carry the ratio of the sides. A side of one pixel has the
// coordinate 0 and is sampled at its only place.
template <class T>
IADD_HD Resample<T> resample_by(const Matrix<T>& matrix, const Shape& shape, bool transposed) {
  Resample<T> resample;
  T centre_y = T(shape.height - 1) * T(0.5), centre_x = T(shape.width - 1) * T(0.5);
  bool column = shape.width == 1, row = shape.height == 1;
  bool line = column || row;
  Matrix<T> map{
      column ? T(1) : matrix.xx, line ? T(0) : matrix.xy * (centre_x / centre_y),
      line ? T(0) : matrix.yx * (centre_y / centre_x), row ? T(1) : matrix.yy};
  resample.map = resample.window = map;
  resample.centre_y = centre_y;
  resample.centre_x = centre_x;
  resample.reach_y = resample.reach_x = T(1);
  resample.taps_y = resample.taps_x = 2;
  if (transposed) {
    T scale = T(1) / (map.xx * map.yy - map.xy * map.yx);
    resample.window = {map.yy * scale, -map.xy * scale, -map.yx * scale, map.xx * scale};
    resample.reach_y = absolute(resample.window.yx) + absolute(resample.window.yy);
    resample.reach_x = absolute(resample.window.xx) + absolute(resample.window.xy);
    resample.taps_y = static_cast<int>(T(2) * resample.reach_y) + 1;
    resample.taps_x = static_cast<int>(T(2) * resample.reach_x) + 1;
  }
  return resample;
}

// The parameters of `sample` for the family at `position` of the chain; those of the adjoint of its
// linear part if `transposed`.
template <class T>
IADD_HD Stage<T> draw(
    const Chain& chain, uint64_t seed, int64_t sample, int position, const Shape& shape,
    bool transposed) {
  Words words = philox(
      seed, chain.shared ? 0u : static_cast<uint32_t>(sample), static_cast<uint32_t>(position));
  Stage<T> stage{};
  stage.family = stage.move.family = chain.family[position];
  switch (stage.family) {
    case kColor:
      stage.color = {
          chain.linear || transposed ? T(0) : uniform<T>(words.word[0]) - T(0.5),
          T(2) * uniform<T>(words.word[1]), uniform<T>(words.word[2]) + T(0.5)};
      break;
    case kCrop: {
      int reach_y = (shape.height + 4) / 8, reach_x = (shape.width + 4) / 8;
      int shift_y = integer(words.word[0], -reach_y, reach_y);
      int shift_x = integer(words.word[1], -reach_x, reach_x);
      stage.move.shift_y = transposed ? -shift_y : shift_y;
      stage.move.shift_x = transposed ? -shift_x : shift_x;
      stage.move.rows = shifted_span(shape.height, stage.move.shift_y);
      stage.move.columns = shifted_span(shape.width, stage.move.shift_x);
      break;
    }
    case kCutout:
      stage.move.rows = cutout_span(words.word[0], shape.height);
      stage.move.columns = cutout_span(words.word[1], shape.width);
      break;
    case kFlip:
      stage.move.mirrored = uniform<T>(words.word[0]) < T(0.5);
      break;
    case kScale: {
      T low = T(1 / 1.2), width = T(1.2 - 1 / 1.2);
      T factor_x = uniform<T>(words.word[0]) * width + low;
      T factor_y = uniform<T>(words.word[1]) * width + low;
      stage.resample = resample_by<T>({factor_x, T(0), T(0), factor_y}, shape, transposed);
      break;
    }
    default: {
      constexpr double full_turn = 6.283185307179586476925286766559;
      T angle = (uniform<T>(words.word[0]) - T(0.5)) * T(30.0 / 360.0 * full_turn);
      T cosine = std::cos(angle), sine = std::sin(angle);
      stage.resample = resample_by<T>({cosine, -sine, sine, cosine}, shape, transposed);
    }
  }
  return stage;
}

// Brightness, saturation and contrast of one pixel, given the means of the stage's input over the
// pixel's channels and over the sample. Both means are symmetric, commuting projections: without
// the brightness the map is its own transpose.
template <class T>
IADD_HD T colored(const Color<T>& color, T pixel, T channel_mean, T sample_mean) {
  T saturated = (pixel - channel_mean) * color.saturation + (channel_mean - sample_mean);
  return saturated * color.contrast + (sample_mean + color.brightness);
}

// Where the pixel at (y, x) of a crop, cutout or flip comes from in its plane; -1: it is zero. The
// adjoint of a crop is a crop, the others are their own.
IADD_HD int moved_from(const Move& move, const Shape& shape, int y, int x) {
  bool inside = move.rows.holds(y) && move.columns.holds(x);
  if (move.family == kCrop) {
    return inside ? (y + move.shift_y) * shape.width + x + move.shift_x : -1;
  }
  if (move.family == kCutout) return inside ? -1 : y * shape.width + x;
  return y * shape.width + (move.mirrored ? shape.width - 1 - x : x);
}

template <class T>
IADD_HD int ceiling(T value) {
  int truncated = static_cast<int>(value);
  return truncated + (T(truncated) < value);
}

struct Place {
  int y, x;
};

// The first of the taps_y x taps_x pixels that the pixel at (y, x) is gathered from; some lie
// outside of the plane.
template <class T>
IADD_HD Place first_tap(const Resample<T>& resample, int y, int x) {
  T from_y = T(y) - resample.centre_y, from_x = T(x) - resample.centre_x;
  T to_y = resample.window.yx * from_x + resample.window.yy * from_y;
  T to_x = resample.window.xx * from_x + resample.window.xy * from_y;
  return {ceiling(to_y + (resample.centre_y - resample.reach_y)),
          ceiling(to_x + (resample.centre_x - resample.reach_x))};
}

// The bilinear weight of the input pixel (in_y, in_x) in the output pixel (out_y, out_x).
template <class T>
IADD_HD T bilinear(const Resample<T>& resample, int out_y, int out_x, int in_y, int in_x) {
  T from_y = T(out_y) - resample.centre_y, from_x = T(out_x) - resample.centre_x;
  T apart_y = resample.map.yx * from_x + resample.map.yy * from_y - (T(in_y) - resample.centre_y);
  T apart_x = resample.map.xx * from_x + resample.map.xy * from_y - (T(in_x) - resample.centre_x);
  T weight_y = T(1) - absolute(apart_y), weight_x = T(1) - absolute(apart_x);
  return weight_y > T(0) && weight_x > T(0) ? weight_y * weight_x : T(0);
}

template <class T>
struct Tap {
  int index;  // in the plane
  T weight;
};

// The share of the pixel at (tap_y, tap_x) in the one at (y, x): the forward map's weight or, for
// the adjoint, the same with the two places exchanged. Outside of the plane it is zero.
template <bool kTransposed, class T>
IADD_HD Tap<T> tap(
    const Resample<T>& resample, const Shape& shape, int y, int x, int tap_y, int tap_x) {
  bool inside = tap_y >= 0 && tap_y < shape.height && tap_x >= 0 && tap_x < shape.width;
  T weight = kTransposed ? bilinear(resample, tap_y, tap_x, y, x)
                         : bilinear(resample, y, x, tap_y, tap_x);
  return {inside ? tap_y * shape.width + tap_x : 0, inside ? weight : T(0)};
}

}  // namespace iadd::diff_augment
