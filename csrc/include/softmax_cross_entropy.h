// Softmax cross-entropy: the arithmetic of one entry. The formulas stand in
// iadd_fast/reference/softmax_cross_entropy.py; a row's sums are the caller's.
#pragma once

#include "host_device.h"

namespace iadd::softmax_cross_entropy {

// dL/dlogit: p T - t, T the row's sum of targets.
template <class T>
IADD_HD T logit_gradient(T p, T target, T mass) {
  return p * mass - target;
}

// Its derivative without the factor dloss: pdot T + p Tdot - tdot, pdot = p (log p)dot.
template <class T>
IADD_HD T logit_gradient_tangent(T p, T log_p_dot, T mass, T targetdot, T massdot) {
  return p * (log_p_dot * mass + massdot) - targetdot;
}

}  // namespace iadd::softmax_cross_entropy
