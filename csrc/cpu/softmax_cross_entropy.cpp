// softmax_cross_entropy on the CPU: every row is visited once, and exp costs more than everything
// else. The rows' parts of the loss are added in double, in their order.
#include "softmax_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "clones.h"
#include "exponential.h"

namespace iadd::softmax_cross_entropy {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class T>
const T* pointer(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
const T* pointer(const OptionalTensor& x) {
  return x ? pointer<T>(*x) : nullptr;
}

template <class T>
struct Batch {
  int64_t samples, classes;
  const T* logits;
  const int64_t* hard;  // null for soft labels
  const T* soft;
  const T* weights;
  T scale;  // from class weight times label to target: 1 / N, or 1 / sum of the labels' weights

  Batch(const Tensor& logits_tensor, const Tensor& labels, const OptionalTensor& class_weights)
      : samples(logits_tensor.size(0)),
        classes(logits_tensor.size(1)),
        logits(pointer<T>(logits_tensor)),
        hard(labels.scalar_type() == ScalarType::Long ? pointer<int64_t>(labels) : nullptr),
        soft(hard ? nullptr : pointer<T>(labels)),
        weights(pointer<T>(class_weights)) {
    double total = static_cast<double>(samples);
    if (hard && weights) {
      total = 0;
      for (int64_t n = 0; n < samples; ++n) total += known(hard[n]) ? weights[hard[n]] : 0;
    }
    for (int64_t n = 0; hard && n < samples; ++n) {
      if (!known(hard[n])) total = std::numeric_limits<double>::quiet_NaN();
    }
    scale = static_cast<T>(1.0 / total);
  }

  bool known(int64_t label) const { return 0 <= label && label < classes; }
  T target_scale(int64_t c) const { return weights ? weights[c] * scale : scale; }
  // A row of labels, or of their tangents, as targets.
  void scaled(const T* labels, T* targets) const {
    for (int64_t c = 0; c < classes; ++c) targets[c] = target_scale(c) * labels[c];
  }
};

// One row with what every order needs: log p, p, the targets, their sum and, for the tangents, the
// direction. Padded to whole vectors: past the last class p, targets and direction are 0.
template <class T>
struct Row {
  static constexpr int N = wide<T>;

  int64_t padded;
  std::vector<T> log_p, p, target, direction, targetdot;
  T mass;

  explicit Row(int64_t classes)
      : padded((classes + N - 1) / N * N),
        log_p(padded),
        p(padded),
        target(padded),
        direction(padded),
        targetdot(padded) {}

  void read(const Batch<T>& batch, int64_t n) {
    constexpr T none = -std::numeric_limits<T>::infinity();
    std::fill(log_p.begin(), log_p.end(), none);
    std::copy_n(batch.logits + n * batch.classes, batch.classes, log_p.begin());
    Lanes<T, N> largest = fill<T, N>(none), sum{};
    for (int64_t c = 0; c < padded; c += N) {
      Lanes<T, N> x = load<N>(&log_p[c]);
      largest = x > largest ? x : largest;
    }
    T top = none;
    for (int i = 0; i < N; ++i) top = std::max(top, largest[i]);
    for (int64_t c = 0; c < padded; c += N) {
      Lanes<T, N> below = load<N>(&log_p[c]) - top, power = exponential<T, N>(below);
      store(&log_p[c], below);
      store(&p[c], power);
      sum += power;
    }
    T total = lane_sum<T>(sum), inverse = 1 / total, log_total = std::log(total);
    for (int64_t c = 0; c < padded; c += N) {
      store(&log_p[c], load<N>(&log_p[c]) - log_total);
      store(&p[c], load<N>(&p[c]) * inverse);
    }
    if (batch.hard) {
      std::fill(target.begin(), target.end(), T(0));
      if (batch.known(batch.hard[n])) target[batch.hard[n]] = batch.target_scale(batch.hard[n]);
    } else {
      batch.scaled(batch.soft + n * batch.classes, target.data());
    }
    mass = sum_of(target);
  }

  // (log p)dot along a row of logitsdot and, for soft labels, the targets' tangent.
  void read_tangents(const Batch<T>& batch, int64_t n, const T* logitsdot, const T* labelsdot) {
    int64_t first = n * batch.classes;
    std::copy_n(logitsdot + first, batch.classes, direction.begin());
    T mean = product(p, direction);
    for (int64_t c = 0; c < padded; c += N) {
      store(&direction[c], load<N>(&direction[c]) - mean);
    }
    if (labelsdot) batch.scaled(labelsdot + first, targetdot.data());
  }

  T sum_of(const std::vector<T>& a) const {
    Lanes<T, N> sum{};
    for (int64_t c = 0; c < padded; c += N) sum += load<N>(&a[c]);
    return lane_sum<T>(sum);
  }

  // Sum of a times b, where zero times infinity is zero.
  T product(const std::vector<T>& a, const std::vector<T>& b) const {
    Lanes<T, N> sum{};
    for (int64_t c = 0; c < padded; c += N) {
      Lanes<T, N> left = load<N>(&a[c]), right = load<N>(&b[c]);
      // A NaN of b reaches the sum: right == right is false for it alone.
      auto left_out = (left == Lanes<T, N>{}) & (right == right);
      sum += left_out ? Lanes<T, N>{} : left * right;
    }
    return lane_sum<T>(sum);
  }
};

// What an order reads and writes beside the batch; what it does not have is null.
template <class T>
struct Call {
  Batch<T> batch;
  const T *logitsdot, *labelsdot;
  T dloss, dlossdot;
  T *dlogits, *dlabels;
  double* row_sums;
};

struct Forward {
  template <class T>
  static void run(const Call<T>& call, Row<T>& row, int64_t n) {
    call.row_sums[n] = -row.product(row.target, row.log_p);
  }
};

struct Backward {
  template <class T>
  static void run(const Call<T>& call, Row<T>& row, int64_t n) {
    const Batch<T>& batch = call.batch;
    int64_t first = n * batch.classes;
    for (int64_t c = 0; c < batch.classes; ++c) {
      call.dlogits[first + c] = call.dloss * logit_gradient(row.p[c], row.target[c], row.mass);
    }
    if (!call.dlabels) return;
    for (int64_t c = 0; c < batch.classes; ++c) {
      call.dlabels[first + c] = -call.dloss * batch.target_scale(c) * row.log_p[c];
    }
  }
};

struct Tangent {
  template <class T>
  static void run(const Call<T>& call, Row<T>& row, int64_t n) {
    row.read_tangents(call.batch, n, call.logitsdot, call.labelsdot);
    call.row_sums[n] =
        -row.product(row.target, row.direction) - row.product(row.targetdot, row.log_p);
  }
};

struct BackwardTangent {
  template <class T>
  static void run(const Call<T>& call, Row<T>& row, int64_t n) {
    const Batch<T>& batch = call.batch;
    row.read_tangents(batch, n, call.logitsdot, call.labelsdot);
    int64_t first = n * batch.classes;
    T massdot = row.sum_of(row.targetdot);
    for (int64_t c = 0; c < batch.classes; ++c) {
      T change = call.dloss *
          logit_gradient_tangent(row.p[c], row.direction[c], row.mass, row.targetdot[c], massdot);
      change += call.dlossdot * logit_gradient(row.p[c], row.target[c], row.mass);
      call.dlogits[first + c] = change;
    }
    if (!call.dlabels) return;
    for (int64_t c = 0; c < batch.classes; ++c) {
      T change = call.dloss * row.direction[c];
      // log p may be infinite.
      if (call.dlossdot != 0) change += call.dlossdot * row.log_p[c];
      call.dlabels[first + c] = -batch.target_scale(c) * change;
    }
  }
};

template <class Op, class T>
inline void rows(const Call<T>& call, int64_t begin, int64_t end) {
  Row<T> row(call.batch.classes);
  for (int64_t n = begin; n < end; ++n) {
    row.read(call.batch, n);
    Op::run(call, row, n);
  }
}

// target_clones takes no templates: the functions it clones are spelled out.
#define IADD_ROWS(OP) \
  IADD_CLONES void run(OP, const Call<float>& call, int64_t begin, int64_t end) { \
    rows<OP>(call, begin, end); \
  } \
  IADD_CLONES void run(OP, const Call<double>& call, int64_t begin, int64_t end) { \
    rows<OP>(call, begin, end); \
  }
IADD_ROWS(Forward)
IADD_ROWS(Backward)
IADD_ROWS(Tangent)
IADD_ROWS(BackwardTangent)
#undef IADD_ROWS

// Runs an order over the batch; `total` receives the sum of what it left for each row.
template <class Op, class T>
void launch(Call<T> call, T* total = nullptr) {
  std::vector<double> row_sums(total ? call.batch.samples : 0);
  call.row_sums = row_sums.data();
  // A thread is worth waking for some ten microseconds of work.
  int64_t grain = std::max<int64_t>(1, 8192 / call.batch.classes);
  torch::stable::parallel_for(0, call.batch.samples, grain, [&](int64_t begin, int64_t end) {
    run(Op{}, call, begin, end);
  });
  if (!total) return;
  double sum = 0;
  for (double part : row_sums) sum += part;
  *total = static_cast<T>(sum);
}

template <class F>
void for_dtype(ScalarType dtype, F f) {
  if (dtype == ScalarType::Double) {
    f(double{});
  } else {
    f(float{});
  }
}

// What a direct call could get wrong about the batch; `n` and `c` are its sizes.
struct Checked : Check {
  int64_t n, c;
  bool soft;

  Checked(const Tensor& logits, const Tensor& labels, const OptionalTensor& class_weights)
      : Check("softmax_cross_entropy", "logits", logits, ScalarType::Float,
                  ScalarType::Double) {
    dimensions("logits", logits, 2);
    n = logits.size(0);
    c = logits.size(1);
    soft = labels.scalar_type() != ScalarType::Long;
    reads("logits", logits, {n, c});
    if (soft) {
      reads("labels", labels, {n, c});
    } else {
      reads_whole_numbers("labels", labels, {n});
    }
    reads("class_weights", class_weights, {c});
  }
  void tangents(const Tensor& logitsdot, const OptionalTensor& labelsdot) {
    reads("logitsdot", logitsdot, {n, c});
    demand(soft || !labelsdot, "labelsdot", "classes have no tangent");
    reads("labelsdot", labelsdot, {n, c});
  }
  void gradients(const Tensor& dlogits, const OptionalTensor& dlabels) {
    writes("dlogits", dlogits, {n, c});
    demand(soft || !dlabels, "dlabels", "classes have no gradient");
    writes("dlabels", dlabels, {n, c});
  }
};

template <class T>
T* writable(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}
template <class T>
T* writable(const OptionalTensor& x) {
  return x ? writable<T>(*x) : nullptr;
}

void forward_op(Tensor logits, Tensor labels, OptionalTensor class_weights, Tensor loss) {
  Checked check(logits, labels, class_weights);
  check.writes("loss", loss, {});
  for_dtype(check.dtype(), [&]<class T>(T) {
    launch<Forward, T>({.batch = {logits, labels, class_weights}}, writable<T>(loss));
  });
}

void backward_op(Tensor logits, Tensor labels, Tensor dloss, OptionalTensor class_weights,
                 Tensor dlogits, OptionalTensor dlabels) {
  Checked check(logits, labels, class_weights);
  check.reads("dloss", dloss, {});
  check.gradients(dlogits, dlabels);
  for_dtype(check.dtype(), [&]<class T>(T) {
    launch<Backward, T>({.batch = {logits, labels, class_weights},
                         .dloss = *pointer<T>(dloss),
                         .dlogits = writable<T>(dlogits),
                         .dlabels = writable<T>(dlabels)});
  });
}

void tangent_op(Tensor logits, Tensor labels, Tensor logitsdot, OptionalTensor labelsdot,
                OptionalTensor class_weights, Tensor lossdot) {
  Checked check(logits, labels, class_weights);
  check.tangents(logitsdot, labelsdot);
  check.writes("lossdot", lossdot, {});
  for_dtype(check.dtype(), [&]<class T>(T) {
    launch<Tangent, T>({.batch = {logits, labels, class_weights},
                        .logitsdot = pointer<T>(logitsdot),
                        .labelsdot = pointer<T>(labelsdot)},
                       writable<T>(lossdot));
  });
}

void backward_tangent_op(Tensor logits, Tensor labels, Tensor dloss, Tensor logitsdot,
                         OptionalTensor labelsdot, OptionalTensor dlossdot,
                         OptionalTensor class_weights, Tensor dlogitsdot,
                         OptionalTensor dlabelsdot) {
  Checked check(logits, labels, class_weights);
  check.reads("dloss", dloss, {});
  check.reads("dlossdot", dlossdot, {});
  check.tangents(logitsdot, labelsdot);
  check.gradients(dlogitsdot, dlabelsdot);
  for_dtype(check.dtype(), [&]<class T>(T) {
    launch<BackwardTangent, T>({.batch = {logits, labels, class_weights},
                                .logitsdot = pointer<T>(logitsdot),
                                .labelsdot = pointer<T>(labelsdot),
                                .dloss = *pointer<T>(dloss),
                                .dlossdot = dlossdot ? *pointer<T>(*dlossdot) : T(0),
                                .dlogits = writable<T>(dlogitsdot),
                                .dlabels = writable<T>(dlabelsdot)});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CPU, library) {
  library.impl("softmax_cross_entropy", TORCH_BOX(&forward_op));
  library.impl("softmax_cross_entropy_backward", TORCH_BOX(&backward_op));
  library.impl("softmax_cross_entropy_tangent", TORCH_BOX(&tangent_op));
  library.impl("softmax_cross_entropy_backward_tangent", TORCH_BOX(&backward_tangent_op));
}

}  // namespace iadd::softmax_cross_entropy
