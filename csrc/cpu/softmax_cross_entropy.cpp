// softmax_cross_entropy on the CPU: rows of a few classes, so one thread and one visit of each row;
// exp and log cost more than everything else. The loss is summed in double, in order.
#include "softmax_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace iadd::softmax_cross_entropy {
namespace {

using torch::headeronly::ScalarType;
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
  T target(int64_t n, int64_t c) const {
    if (hard) return hard[n] == c ? target_scale(c) : T(0);
    return target_scale(c) * soft[n * classes + c];
  }
};

// One row with what every order needs: log p, p, the targets and their sum.
template <class T>
struct Row {
  std::vector<T> log_p, p, target;
  T mass;

  explicit Row(int64_t classes) : log_p(classes), p(classes), target(classes) {}

  void read(const Batch<T>& batch, int64_t n) {
    const T* x = batch.logits + n * batch.classes;
    T largest = -std::numeric_limits<T>::infinity(), sum = 0;
    for (int64_t c = 0; c < batch.classes; ++c) largest = std::max(largest, x[c]);
    for (int64_t c = 0; c < batch.classes; ++c) {
      p[c] = std::exp(x[c] - largest);
      sum += p[c];
    }
    T log_sum = std::log(sum), inverse = 1 / sum;
    mass = 0;
    for (int64_t c = 0; c < batch.classes; ++c) {
      log_p[c] = x[c] - largest - log_sum;
      p[c] *= inverse;
      target[c] = batch.target(n, c);
      mass += target[c];
    }
  }

  T mean_of(const T* direction) const {
    T sum = 0;
    for (size_t c = 0; c < p.size(); ++c) sum += p[c] * direction[c];
    return sum;
  }
};

template <class T>
void forward(const Batch<T>& batch, T* loss) {
  Row<T> row(batch.classes);
  double total = 0;
  for (int64_t n = 0; n < batch.samples; ++n) {
    row.read(batch, n);
    for (int64_t c = 0; c < batch.classes; ++c) {
      // A target of zero times log p = -inf is zero.
      if (row.target[c] != 0) total -= double(row.target[c]) * row.log_p[c];
    }
  }
  *loss = static_cast<T>(total);
}

template <class T>
void backward(const Batch<T>& batch, T dloss, T* dlogits, T* dlabels) {
  Row<T> row(batch.classes);
  for (int64_t n = 0; n < batch.samples; ++n) {
    row.read(batch, n);
    for (int64_t c = 0; c < batch.classes; ++c) {
      int64_t i = n * batch.classes + c;
      dlogits[i] = dloss * logit_gradient(row.p[c], row.target[c], row.mass);
      if (dlabels) dlabels[i] = -dloss * batch.target_scale(c) * row.log_p[c];
    }
  }
}

template <class T>
void tangent(const Batch<T>& batch, const T* logitsdot, const T* labelsdot, T* lossdot) {
  Row<T> row(batch.classes);
  double total = 0;
  for (int64_t n = 0; n < batch.samples; ++n) {
    row.read(batch, n);
    const T* direction = logitsdot + n * batch.classes;
    T mean = row.mean_of(direction);
    for (int64_t c = 0; c < batch.classes; ++c) {
      total -= double(row.target[c]) * (direction[c] - mean);
      if (labelsdot) {
        total -= double(batch.target_scale(c) * labelsdot[n * batch.classes + c]) * row.log_p[c];
      }
    }
  }
  *lossdot = static_cast<T>(total);
}

template <class T>
void backward_tangent(const Batch<T>& batch, T dloss, const T* logitsdot, const T* labelsdot,
                      T dlossdot, T* dlogitsdot, T* dlabelsdot) {
  Row<T> row(batch.classes);
  for (int64_t n = 0; n < batch.samples; ++n) {
    row.read(batch, n);
    const T* direction = logitsdot + n * batch.classes;
    T mean = row.mean_of(direction), massdot = 0;
    auto targetdot = [&](int64_t c) {
      return labelsdot ? batch.target_scale(c) * labelsdot[n * batch.classes + c] : T(0);
    };
    for (int64_t c = 0; c < batch.classes; ++c) massdot += targetdot(c);
    for (int64_t c = 0; c < batch.classes; ++c) {
      int64_t i = n * batch.classes + c;
      T log_p_dot = direction[c] - mean;
      dlogitsdot[i] =
          dloss * logit_gradient_tangent(row.p[c], log_p_dot, row.mass, targetdot(c), massdot);
      if (dlossdot != 0) {
        dlogitsdot[i] += dlossdot * logit_gradient(row.p[c], row.target[c], row.mass);
      }
      if (dlabelsdot) {
        T change = dloss * log_p_dot;
        if (dlossdot != 0) change += dlossdot * row.log_p[c];
        dlabelsdot[i] = -batch.target_scale(c) * change;
      }
    }
  }
}

template <class F>
void for_dtype(const Tensor& logits, F f) {
  if (logits.scalar_type() == ScalarType::Double) {
    f(double{});
  } else {
    f(float{});
  }
}

template <class T>
T* writable(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}
template <class T>
T* writable(const OptionalTensor& x) {
  return x ? writable<T>(*x) : nullptr;
}

void forward_op(Tensor logits, Tensor labels, OptionalTensor class_weights, Tensor loss) {
  for_dtype(logits, [&]<class T>(T) {
    forward(Batch<T>(logits, labels, class_weights), writable<T>(loss));
  });
}

void backward_op(Tensor logits, Tensor labels, Tensor dloss, OptionalTensor class_weights,
                 Tensor dlogits, OptionalTensor dlabels) {
  for_dtype(logits, [&]<class T>(T) {
    backward(Batch<T>(logits, labels, class_weights), *pointer<T>(dloss), writable<T>(dlogits),
             writable<T>(dlabels));
  });
}

void tangent_op(Tensor logits, Tensor labels, Tensor logitsdot, OptionalTensor labelsdot,
                OptionalTensor class_weights, Tensor lossdot) {
  for_dtype(logits, [&]<class T>(T) {
    tangent(Batch<T>(logits, labels, class_weights), pointer<T>(logitsdot),
            pointer<T>(labelsdot), writable<T>(lossdot));
  });
}

void backward_tangent_op(Tensor logits, Tensor labels, Tensor dloss, Tensor logitsdot,
                         OptionalTensor labelsdot, OptionalTensor dlossdot,
                         OptionalTensor class_weights, Tensor dlogitsdot,
                         OptionalTensor dlabelsdot) {
  for_dtype(logits, [&]<class T>(T) {
    backward_tangent(Batch<T>(logits, labels, class_weights), *pointer<T>(dloss),
                     pointer<T>(logitsdot), pointer<T>(labelsdot),
                     dlossdot ? *pointer<T>(*dlossdot) : T(0), writable<T>(dlogitsdot),
                     writable<T>(dlabelsdot));
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
