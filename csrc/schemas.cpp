// The schemas of the native operators. csrc/cpu and csrc/cuda implement them for their dispatch key.
//
// Outputs are allocated in Python (iadd_fast/native) and written here, so that a caller with static
// buffers allocates nothing. Python has checked every argument before it calls; the implementations
// check what memory safety needs themselves (csrc/include/checks.h): anybody can reach them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(iadd_fast_native, library) {
  library.def(
      "param_distance(Tensor theta, Tensor start, Tensor target, Tensor? weight, "
      "bool weighted_normaliser, Tensor(a!) loss) -> ()");
  library.def(
      "param_distance_gradients(Tensor theta, Tensor start, Tensor target, Tensor? weight, "
      "bool weighted_normaliser, Tensor(a!) loss, Tensor(b!) d_theta, Tensor(c!)? d_weight) -> ()");
  library.def(
      "diff_augment(Tensor images, int[] families, int seed, Tensor? seed_on_device, bool shared, "
      "bool linear, Tensor(a!) out) -> ()");
  library.def(
      "diff_augment_adjoint(Tensor cotangent, int[] families, int seed, Tensor? seed_on_device, "
      "bool shared, Tensor(a!) out) -> ()");
  library.def(
      "norm_relu_pool(Tensor z, Tensor? gamma, Tensor? beta, float eps, bool pool, "
      "bool channels_last, Tensor(a!) p) -> ()");
  library.def(
      "norm_relu_pool_backward(Tensor z, Tensor? gamma, Tensor? beta, Tensor dp, float eps, "
      "bool pool, bool channels_last, Tensor(a!) dz, Tensor(b!)? dgamma, Tensor(c!)? dbeta) -> ()");
  library.def(
      "norm_relu_pool_tangent(Tensor z, Tensor? gamma, Tensor? beta, Tensor zdot, "
      "Tensor? gammadot, Tensor? betadot, float eps, bool pool, bool channels_last, "
      "Tensor(a!) pdot) -> ()");
  library.def(
      "norm_relu_pool_backward_tangent(Tensor z, Tensor? gamma, Tensor? beta, Tensor dp, "
      "Tensor zdot, Tensor? gammadot, Tensor? betadot, Tensor? dpdot, float eps, bool pool, "
      "bool channels_last, Tensor(a!) dzdot, Tensor(b!)? dgammadot, Tensor(c!)? dbetadot, "
      "Tensor(d!)? dz) -> ()");
  library.def(
      "softmax_cross_entropy(Tensor logits, Tensor labels, Tensor? class_weights, "
      "Tensor(a!) loss) -> ()");
  library.def(
      "softmax_cross_entropy_backward(Tensor logits, Tensor labels, Tensor dloss, "
      "Tensor? class_weights, Tensor(a!) dlogits, Tensor(b!)? dlabels) -> ()");
  library.def(
      "softmax_cross_entropy_tangent(Tensor logits, Tensor labels, Tensor logitsdot, "
      "Tensor? labelsdot, Tensor? class_weights, Tensor(a!) lossdot) -> ()");
  library.def(
      "softmax_cross_entropy_backward_tangent(Tensor logits, Tensor labels, Tensor dloss, "
      "Tensor logitsdot, Tensor? labelsdot, Tensor? dlossdot, Tensor? class_weights, "
      "Tensor(a!) dlogitsdot, Tensor(b!)? dlabelsdot) -> ()");
  library.def(
      "conv3x3(Tensor[] images, Tensor[] weights, int padding, bool direct, int below, "
      "Tensor(a!) out) -> ()");
  library.def(
      "conv3x3_input_gradient(Tensor[] gradients, Tensor[] weights, int padding, bool direct, "
      "int below, Tensor(a!) out) -> ()");
  library.def(
      "conv3x3_weight_gradient(Tensor[] images, Tensor[] gradients, int padding, bool direct, "
      "int below, Tensor(a!) out) -> ()");
}
