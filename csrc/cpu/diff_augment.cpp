// diff_augment on the CPU. A thread takes whole samples: the chain runs stage by stage between two
// buffers of one sample, which stay in the cache; memory sees the image once and the result once.
#include "diff_augment.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "checks.h"
#include "clones.h"

namespace iadd::diff_augment {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Columns, or pixels, whose intermediate values stand on the stack at a time.
constexpr int kSegment = 64;
constexpr int kTaps = 9;
constexpr int kLanes = 16;

template <class T>
inline double sample_total(const T* pixels, int count) {
  double part[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) part[lane] += pixels[i + lane];
  }
  for (int lane = 0; i < count; ++i, ++lane) part[lane] += pixels[i];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  }
  return part[0];
}

template <class T>
inline void recolor(const Color<T>& color, const Shape& shape, const T* in, T* __restrict__ out) {
  T sample_mean = static_cast<T>(sample_total(in, shape.elements()) / shape.elements());
  T per_channel = T(1) / T(shape.channels);
  int plane = shape.plane();
  for (int first = 0; first < plane; first += kSegment) {
    int count = std::min(kSegment, plane - first);
    T mean[kSegment] = {};
    for (int channel = 0; channel < shape.channels; ++channel) {
      const T* from = in + static_cast<int64_t>(channel) * plane + first;
      for (int i = 0; i < count; ++i) mean[i] += from[i];
    }
    for (int i = 0; i < count; ++i) mean[i] *= per_channel;
    for (int channel = 0; channel < shape.channels; ++channel) {
      int64_t offset = static_cast<int64_t>(channel) * plane + first;
      for (int i = 0; i < count; ++i) {
        out[offset + i] = colored(color, in[offset + i], mean[i], sample_mean);
      }
    }
  }
}

// A run of columns comes from a run of columns of one row: `moved_from` at its first column says
// which.
template <class T>
inline void move_run(
    const Move& move, const Shape& shape, int y, int begin, int end, const T* in, T* out) {
  if (begin >= end) return;
  int from = moved_from(move, shape, y, begin);
  if (from < 0) {
    std::fill(out + begin, out + end, T(0));
  } else if (move.mirrored) {
    for (int x = begin; x < end; ++x) out[x] = in[from - (x - begin)];
  } else {
    std::copy(in + from, in + from + (end - begin), out + begin);
  }
}

template <class T>
inline void rearrange(const Move& move, const Shape& shape, const T* in, T* out) {
  int begin = std::clamp(move.columns.begin, 0, shape.width);
  int end = std::clamp(move.columns.end, begin, shape.width);
  for (int channel = 0; channel < shape.channels; ++channel) {
    for (int y = 0; y < shape.height; ++y) {
      move_run(move, shape, y, 0, begin, in, out);
      move_run(move, shape, y, begin, end, in, out);
      move_run(move, shape, y, end, shape.width, in, out);
      out += shape.width;
    }
    in += shape.plane();
  }
}

template <class T>
struct Taps {
  int count;
  int index[kTaps][kSegment];
  T weight[kTaps][kSegment];
};

template <int kChannels, int kCount, class T>
inline void gather_channels(
    const Taps<T>& taps, int count, int plane, bool first, const T* in, T* __restrict__ out) {
  int64_t stride = plane;
  int taps_count = kCount ? kCount : taps.count;
  for (int x = 0; x < count; ++x) {
    T sum[kChannels] = {};
    for (int k = 0; k < taps_count; ++k) {
      const T* from = in + taps.index[k][x];
      for (int channel = 0; channel < kChannels; ++channel) {
        sum[channel] += taps.weight[k][x] * from[channel * stride];
      }
    }
    for (int channel = 0; channel < kChannels; ++channel) {
      T& to = out[channel * stride + x];
      to = first ? sum[channel] : to + sum[channel];
    }
  }
}

template <int kCount, class T>
inline void gather(
    const Taps<T>& taps, int count, const Shape& shape, bool first, const T* in, T* out) {
  int64_t plane = shape.plane();
  int channel = 0;
  for (; channel + 3 <= shape.channels; channel += 3, in += 3 * plane, out += 3 * plane) {
    gather_channels<3, kCount>(taps, count, plane, first, in, out);
  }
  for (; channel < shape.channels; ++channel, in += plane, out += plane) {
    gather_channels<1, kCount>(taps, count, plane, first, in, out);
  }
}

// The taps of a segment of a row are found once, a vector of pixels at a time, for all channels.
template <bool kTransposed, class T>
inline void interpolate(const Resample<T>& resample, const Shape& shape, const T* in, T* out) {
  Taps<T> taps;
  int start_y[kSegment], start_x[kSegment];
  int plane = shape.plane(), all_taps = resample.taps_y * resample.taps_x;
  for (int row = 0; row < plane; row += shape.width) {
    int y = row / shape.width;
    for (int left = 0; left < shape.width; left += kSegment) {
      int count = std::min(kSegment, shape.width - left);
      for (int x = 0; x < count; ++x) {
        Place start = first_tap(resample, y, left + x);
        start_y[x] = start.y;
        start_x[x] = start.x;
      }
      for (int first = 0; first < all_taps; first += kTaps) {
        taps.count = std::min(kTaps, all_taps - first);
        for (int k = 0; k < taps.count; ++k) {
          int below = (first + k) / resample.taps_x, right = (first + k) % resample.taps_x;
          for (int x = 0; x < count; ++x) {
            auto one = tap<kTransposed>(
                resample, shape, y, left + x, start_y[x] + below, start_x[x] + right);
            taps.index[k][x] = one.index;
            taps.weight[k][x] = one.weight;
          }
        }
        T* to = out + row + left;
        if (taps.count == 4) {
          gather<4>(taps, count, shape, first == 0, in, to);
        } else if (taps.count == 9) {
          gather<9>(taps, count, shape, first == 0, in, to);
        } else {
          gather<0>(taps, count, shape, first == 0, in, to);
        }
      }
    }
  }
}

template <bool kTransposed, class T>
inline void apply(const Stage<T>& stage, const Shape& shape, const T* in, T* out) {
  switch (stage.family) {
    case kColor:
      recolor(stage.color, shape, in, out);
      break;
    case kScale:
    case kRotate:
      interpolate<kTransposed>(stage.resample, shape, in, out);
      break;
    default:
      rearrange(stage.move, shape, in, out);
  }
}

struct Call {
  Chain chain;
  Shape shape;
  uint64_t seed;
  bool transposed;
};

template <bool kTransposed, class T>
inline void samples_between(
    const Call& call, const T* in, T* out, T* scratch, int64_t begin, int64_t end) {
  int64_t elements = call.shape.elements();
  int count = call.chain.count;
  for (int64_t sample = begin; sample < end; ++sample) {
    const T* from = in + sample * elements;
    if (count == 0) std::copy_n(from, elements, out + sample * elements);
    for (int step = 0; step < count; ++step) {
      int position = kTransposed ? count - 1 - step : step;
      auto stage = draw<T>(call.chain, call.seed, sample, position, call.shape, kTransposed);
      T* to = step == count - 1 ? out + sample * elements : scratch + (step % 2) * elements;
      apply<kTransposed>(stage, call.shape, from, to);
      from = to;
    }
  }
}

IADD_CLONES void samples(
    const Call& call, const float* in, float* out, float* scratch, int64_t begin, int64_t end) {
  if (call.transposed) {
    samples_between<true>(call, in, out, scratch, begin, end);
  } else {
    samples_between<false>(call, in, out, scratch, begin, end);
  }
}

IADD_CLONES void samples(
    const Call& call, const double* in, double* out, double* scratch, int64_t begin,
    int64_t end) {
  if (call.transposed) {
    samples_between<true>(call, in, out, scratch, begin, end);
  } else {
    samples_between<false>(call, in, out, scratch, begin, end);
  }
}

template <class T>
void run(const Call& call, int64_t count, const Tensor& in, const Tensor& out) {
  const T* from = in.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  int64_t elements = call.shape.elements(), work = 0;
  for (int i = 0; i < call.chain.count; ++i) {
    bool resamples = call.chain.family[i] == kScale || call.chain.family[i] == kRotate;
    work += resamples ? 10 * elements : elements;
  }
  // A thread is worth waking for some ten microseconds of work.
  int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, work));
  int64_t buffers = std::clamp(call.chain.count - 1, 0, 2);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<T[]> scratch(new T[buffers * elements]);
    samples(call, from, to, scratch.get(), begin, end);
  });
}

void launch(
    const Tensor& in, const std::vector<int64_t>& families, int64_t seed,
    const OptionalTensor& seed_on_device, bool shared, bool linear, bool transposed,
    const Tensor& out) {
  Check check("diff_augment", "images", in, ScalarType::Float, ScalarType::Double);
  check.demand(in.dim() == 4, "images", "takes four dimensions");
  check.reads("images", in, {in.size(0), in.size(1), in.size(2), in.size(3)});
  if (seed_on_device) check.reads_whole_numbers("seed_on_device", *seed_on_device, {});
  check.writes("out", out, {in.size(0), in.size(1), in.size(2), in.size(3)});
  if (in.numel() == 0) return;
  Call call{
      chain_of(families, shared, linear), shape_of(in.size(1), in.size(2), in.size(3)),
      static_cast<uint64_t>(seed_on_device ? *seed_on_device->const_data_ptr<int64_t>() : seed),
      transposed};
  if (check.dtype() == ScalarType::Double) {
    run<double>(call, in.size(0), in, out);
  } else {
    run<float>(call, in.size(0), in, out);
  }
}

void forward(
    Tensor images, std::vector<int64_t> families, int64_t seed, OptionalTensor seed_on_device,
    bool shared, bool linear, Tensor out) {
  launch(images, families, seed, seed_on_device, shared, linear, false, out);
}

void adjoint(
    Tensor cotangent, std::vector<int64_t> families, int64_t seed, OptionalTensor seed_on_device,
    bool shared, Tensor out) {
  launch(cotangent, families, seed, seed_on_device, shared, true, true, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("diff_augment", TORCH_BOX(&forward));
  library.impl("diff_augment_adjoint", TORCH_BOX(&adjoint));
}

}  // namespace iadd::diff_augment
