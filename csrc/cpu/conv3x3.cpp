// conv3x3 on the CPU: three sums of convolutions serve all four orders. Images are channels-last,
// weights [Cout, Cin, 3, 3]; `direct` chooses the passes for few input channels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "conv3x3_weight_gradient.h"
#include "pages.h"

namespace iadd::conv3x3 {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The register tile depends on the instruction set, so the choice cannot be left to target_clones.
// `level` is how far below the machine's best set to stay: 0, except for tests.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define IADD_LEVEL(SET) __attribute__((target("arch=" SET), flatten))
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
  __attribute__((flatten)) void run_v1(PASS, const JOB<T>& job, int64_t begin, int64_t end) { \
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
  __attribute__((flatten)) void run(PASS, int, const JOB<T>& job, int64_t begin, int64_t end) { \
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

bool is_double(const Tensor& x) {
  return x.scalar_type() == torch::headeronly::ScalarType::Double;
}

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
  (is_double(out) ? product<double> : product<float>)(images, weights, false, padding, direct,
                                                      chosen_level(below), out);
}

// sum of the gradients for the input.
void sum_of_input_gradients(Tensors gradients, Tensors weights, int64_t padding, bool direct,
                            int64_t below, Tensor out) {
  // Winograd's patches start 2 - padding before a tile; columns are added `padding` behind.
  int64_t offset = direct ? padding : 2 - padding;
  (is_double(out) ? product<double> : product<float>)(gradients, weights, true, offset, direct,
                                                      chosen_level(below), out);
}

// sum of the gradients for the weight.
void sum_of_weight_gradients(Tensors images, Tensors gradients, int64_t padding, bool direct,
                             int64_t below, Tensor out) {
  (is_double(out) ? weight_gradient<double> : weight_gradient<float>)(
      images, gradients, padding, direct, chosen_level(below), out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("conv3x3", TORCH_BOX(&sum_of_products));
  library.impl("conv3x3_input_gradient", TORCH_BOX(&sum_of_input_gradients));
  library.impl("conv3x3_weight_gradient", TORCH_BOX(&sum_of_weight_gradients));
}

}  // namespace iadd::conv3x3
