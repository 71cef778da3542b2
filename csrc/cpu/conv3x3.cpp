// conv3x3 on the CPU: three sums of convolutions serve all four orders. Images are channels-last,
// weights [Cout, Cin, 3, 3]; `direct` chooses the passes for few input channels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "clones.h"
#include "conv3x3_weight_gradient.h"
#include "pages.h"

namespace iadd::conv3x3 {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The register tile depends on the instruction set, so the choice cannot be left to target_clones.
// `level` is how far below the machine's best set to stay: 0, except for tests.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define IADD_LEVEL(SET) __attribute__((target("arch=" SET), IADD_FLATTEN))
inline int best_level() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return 2;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}
#define IADD_PASS_LEVELS(PASS, JOB, T) \
  IADD_LEVEL("x86-64-v4") void run_v4(PASS, const JOB<T>& job, int64_t begin, int64_t end) { \
    PASS::run<Tile<8, 2, 64>, T>(job, begin, end); \
  } \
  IADD_LEVEL("x86-64-v3") void run_v3(PASS, const JOB<T>& job, int64_t begin, int64_t end) { \
    PASS::run<Tile<6, 2, 32>, T>(job, begin, end); \
  } \
  __attribute__((IADD_FLATTEN)) void run_v1(PASS, const JOB<T>& job, int64_t begin, int64_t end) { \
    PASS::run<Tile<4, 2, 16>, T>(job, begin, end); \
  } \
  void run(PASS pass, int level, const JOB<T>& job, int64_t begin, int64_t end) { \
    if (level >= 2) return run_v4(pass, job, begin, end); \
    if (level == 1) return run_v3(pass, job, begin, end); \
    run_v1(pass, job, begin, end); \
  }
#else
inline int best_level() { return 0; }
#define IADD_PASS_LEVELS(PASS, JOB, T) \
  __attribute__((IADD_FLATTEN)) void run(PASS, int, const JOB<T>& job, int64_t begin, int64_t end) { \
    PASS::run<Tile<4, 2, 16>, T>(job, begin, end); \
  }
#endif

#define IADD_PASS(PASS, JOB) \
  IADD_PASS_LEVELS(PASS, JOB, float) \
  IADD_PASS_LEVELS(PASS, JOB, double)
IADD_PASS(TransformWeights, Product)
IADD_PASS(ArrangeWeights, Product)
IADD_PASS(WinogradProduct, Product)
IADD_PASS(DirectProduct, Product)
IADD_PASS(DirectInputGradient, Product)
IADD_PASS(WinogradWeightGradient, WeightGradient)
IADD_PASS(DirectWeightGradient, WeightGradient)
IADD_PASS(FinishWinograd, WeightGradient)
IADD_PASS(FinishDirect, WeightGradient)
#undef IADD_PASS

int chosen_level(int64_t below) {
  static const int best = best_level();
  return std::max(0, best - static_cast<int>(below));
}

template <class Pass, class Job>
void parallel(Pass pass, int level, const Job& job, int64_t count, int64_t grain) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, grain),
                              [&](int64_t begin, int64_t end) {
    run(pass, level, job, begin, end);
  });
}

Images images_of(const Tensor& x) {
  return {x.size(0), x.size(2), x.size(3), x.size(1)};
}

// The sizes of images [N, in, H, W] and of their convolutions.
struct Shapes {
  int64_t n, in, h, w, out, padding;

  int64_t out_h() const { return h + 2 * padding - 2; }
  int64_t out_w() const { return w + 2 * padding - 2; }
};

// What a direct call could get wrong: one or two tensors a list, all of the same sizes.
struct Checked : Check {
  Shapes at{};

  Checked(const char* op, const char* name, const Tensors& model, int64_t padding, int64_t below)
      : Check(op, name, first(op, name, model), ScalarType::Float, ScalarType::Double) {
    demand(0 <= padding && padding <= 3, "padding", "takes 0 to 3");
    demand(0 <= below && below <= 2, "below", "takes 0 to 2");
    at.padding = padding;
  }

  static const Tensor& first(const char* op, const char* name, const Tensors& list) {
    if (list.empty() || list.size() > TERMS) {
      throw std::invalid_argument(std::string(op) + ": " + name + ": takes one or two tensors");
    }
    return list[0];
  }

  // The images' own sizes, or those of a gradient for them.
  void images_like(const char* name, const Tensor& x) {
    dimensions(name, x, 4);
    at.n = x.size(0);
    at.in = x.size(1);
    at.h = x.size(2);
    at.w = x.size(3);
    demand(at.out_h() > 0 && at.out_w() > 0, name, "has sides below 3 with their padding");
  }
  void outputs_like(const char* name, const Tensors& list, const Tensors& other, int dimension) {
    demand(list.size() == other.size(), name, "is not as many tensors as the other list");
    dimensions(name, list[0], 4);
    at.out = list[0].size(dimension);
  }
  void read_images(const char* name, const Tensors& list) {
    for (const Tensor& x : list) reads(name, x, {at.n, at.in, at.h, at.w}, Layout::kChannelsLast);
  }
  void read_weights(const Tensors& list) {
    for (const Tensor& x : list) reads("weights", x, {at.out, at.in, 3, 3});
  }
  void read_outputs(const char* name, const Tensors& list) {
    for (const Tensor& x : list) {
      reads(name, x, {at.n, at.out, at.out_h(), at.out_w()}, Layout::kChannelsLast);
    }
  }
};

template <class T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// Tiles of about ten microseconds of work: a thread is not worth waking for less.
int64_t grain_of(int64_t work_each) {
  return (int64_t(1) << 20) / std::max<int64_t>(1, work_each);
}

// Numbers in a vector at a level; a panel has two.
template <class T>
int64_t lanes_of(int level) {
  return (16 << level) / int64_t(sizeof(T));
}

template <class T>
void product(const Tensors& images, const Tensors& weights, bool turned, int64_t offset,
             bool direct, int level, const Tensor& out) {
  Product<T> p{};
  p.terms = static_cast<int>(images.size());
  for (int i = 0; i < p.terms; ++i) {
    p.images[i] = data_of<T>(images[i]);
    p.weights.data[i] = data_of<T>(weights[i]);
  }
  p.in = images_of(images[0]);
  p.out = images_of(out);
  p.offset = offset;
  p.weights.outputs = weights[0].size(0);
  p.weights.inputs = weights[0].size(1);
  p.weights.turned = turned;
  p.to = static_cast<T*>(out.mutable_data_ptr());
  prefer_huge_pages(p.to, out.numel() * int64_t(sizeof(T)));
  int64_t depth = p.depth(direct), lanes = p.lanes(direct), frequencies = p.frequencies(direct);
  int64_t panel = 2 * lanes_of<T>(level), count = (lanes + panel - 1) / panel;
  p.u = scratch<SharedScratch, T>(frequencies * depth * count * panel);
  int64_t work = frequencies * depth * lanes;
  if (!direct) {
    parallel(TransformWeights{}, level, p, count * depth, 64);
    parallel(WinogradProduct{}, level, p, p.out.tiles(), grain_of(work));
  } else if (turned) {
    parallel(ArrangeWeights{}, level, p, count, 64);
    int64_t band = std::min(BAND, p.out.height) * p.in.width;
    parallel(DirectInputGradient{}, level, p, p.out.samples * bands(p.out), grain_of(work * band));
  } else {
    parallel(ArrangeWeights{}, level, p, count, 64);
    parallel(DirectProduct{}, level, p, p.out.samples * p.out.pixels(), grain_of(work));
  }
}

template <class T>
void weight_gradient(const Tensors& images, const Tensors& gradients, int64_t padding, bool direct,
                     int level, const Tensor& out) {
  WeightGradient<T> p{};
  p.terms = static_cast<int>(images.size());
  for (int i = 0; i < p.terms; ++i) {
    p.images[i] = data_of<T>(images[i]);
    p.gradients[i] = data_of<T>(gradients[i]);
  }
  p.in = images_of(images[0]);
  p.out = images_of(gradients[0]);
  p.offset = padding;
  p.to = static_cast<T*>(out.mutable_data_ptr());
  int64_t frequencies = direct ? 1 : FREQUENCIES;
  int64_t least = grain_of(frequencies * p.rows(direct) * p.out.channels);
  int64_t places = p.places(direct);
  p.chunks = std::clamp<int64_t>(places / std::max<int64_t>(1, least), 1,
                                 torch::stable::get_num_threads());
  p.sums = scratch<SharedScratch, T>(p.chunks * frequencies * p.matrix(direct));
  int64_t vectors = rounded_up(p.out.channels, lanes_of<T>(level)) / lanes_of<T>(level);
  if (direct) {
    parallel(DirectWeightGradient{}, level, p, p.chunks, 1);
    parallel(FinishDirect{}, level, p, vectors * p.in.channels, 256);
  } else {
    parallel(WinogradWeightGradient{}, level, p, p.chunks, 1);
    parallel(FinishWinograd{}, level, p, vectors * p.in.channels, 256);
  }
}

// sum of conv(images, weights).
void sum_of_products(Tensors images, Tensors weights, int64_t padding, bool direct, int64_t below,
                     Tensor out) {
  Checked check("conv3x3", "images", images, padding, below);
  check.images_like("images", images[0]);
  check.outputs_like("weights", weights, images, 0);
  check.read_images("images", images);
  check.read_weights(weights);
  check.writes("out", out, {check.at.n, check.at.out, check.at.out_h(), check.at.out_w()},
               Layout::kChannelsLast);
  (check.dtype() == ScalarType::Double ? product<double> : product<float>)(images, weights, false, padding, direct,
                                                      chosen_level(below), out);
}

// sum of the gradients for the input.
void sum_of_input_gradients(Tensors gradients, Tensors weights, int64_t padding, bool direct,
                            int64_t below, Tensor out) {
  Checked check("conv3x3_input_gradient", "gradients", gradients, padding, below);
  check.images_like("out", out);
  check.outputs_like("weights", weights, gradients, 0);
  check.read_outputs("gradients", gradients);
  check.read_weights(weights);
  check.writes("out", out, {check.at.n, check.at.in, check.at.h, check.at.w},
               Layout::kChannelsLast);
  // Winograd's patches start 2 - padding before a tile; columns are added `padding` behind.
  int64_t offset = direct ? padding : 2 - padding;
  (check.dtype() == ScalarType::Double ? product<double> : product<float>)(gradients, weights, true, offset, direct,
                                                      chosen_level(below), out);
}

// sum of the gradients for the weight.
void sum_of_weight_gradients(Tensors images, Tensors gradients, int64_t padding, bool direct,
                             int64_t below, Tensor out) {
  Checked check("conv3x3_weight_gradient", "images", images, padding, below);
  check.images_like("images", images[0]);
  check.outputs_like("gradients", gradients, images, 1);
  check.read_images("images", images);
  check.read_outputs("gradients", gradients);
  check.writes("out", out, {check.at.out, check.at.in, 3, 3});
  (check.dtype() == ScalarType::Double ? weight_gradient<double> : weight_gradient<float>)(
      images, gradients, padding, direct, chosen_level(below), out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("conv3x3", TORCH_BOX(&sum_of_products));
  library.impl("conv3x3_input_gradient", TORCH_BOX(&sum_of_input_gradients));
  library.impl("conv3x3_weight_gradient", TORCH_BOX(&sum_of_weight_gradients));
}

}  // namespace iadd::conv3x3
