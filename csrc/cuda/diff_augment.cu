// diff_augment on a GPU: one block runs the whole chain of one sample. Between stages the sample
// lies in shared memory or, where it does not fit, in a workspace; global memory sees the image
// once and the result once.
#include "diff_augment.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "device.cuh"

namespace iadd::diff_augment {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 512;
// Channels whose sums a thread holds in registers while it goes through a pixel's taps.
constexpr int kGroup = 4;
// More than the kernel's own shared memory: the stages' parameters and the sums of the warps.
constexpr int64_t kOwnSharedMemory = 2048;
constexpr int64_t kDefaultSharedMemory = 48 * 1024;

struct Call {
  Chain chain;
  Shape shape;
  uint64_t seed;
  const int64_t* seed_on_device;

  IADD_HD int buffers() const {
    return chain.count < 2 ? 0 : chain.count == 2 ? 1 : 2;
  }
};

template <class In, class Out>
__device__ __forceinline__ void recolor(
    const Color<float> color, const Shape& shape, const In* in, Out* out, float* warp_sums) {
  float sum = 0;
  for (int i = threadIdx.x; i < shape.elements(); i += blockDim.x) sum += widened(in[i]);
  float sample_mean = block_sum(sum, warp_sums) / static_cast<float>(shape.elements());
  float per_channel = 1.0f / static_cast<float>(shape.channels);
  int plane = shape.plane();
  for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
    float mean = 0;
    for (int channel = 0; channel < shape.channels; ++channel) {
      mean += widened(in[channel * plane + pixel]);
    }
    mean *= per_channel;
    for (int channel = 0; channel < shape.channels; ++channel) {
      float value = widened(in[channel * plane + pixel]);
      out[channel * plane + pixel] = narrowed<Out>(colored(color, value, mean, sample_mean));
    }
  }
}

template <class In, class Out>
__device__ __forceinline__ void rearrange(
    const Move move, const Shape& shape, const In* in, Out* out) {
  int plane = shape.plane();
  for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
    int y = pixel / shape.width, x = pixel - y * shape.width;
    int from = moved_from(move, shape, y, x);
    for (int channel = 0; channel < shape.channels; ++channel) {
      float value = from < 0 ? 0.0f : widened(in[channel * plane + from]);
      out[channel * plane + pixel] = narrowed<Out>(value);
    }
  }
}

template <bool kTransposed, class In, class Out>
__device__ __forceinline__ void interpolate(
    const Resample<float> resample, const Shape& shape, const In* in, Out* out) {
  int plane = shape.plane();
  int taps_y = kTransposed ? resample.taps_y : 2, taps_x = kTransposed ? resample.taps_x : 2;
  for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) {
    int y = pixel / shape.width, x = pixel - y * shape.width;
    Place start = first_tap(resample, y, x);
    for (int first = 0; first < shape.channels; first += kGroup) {
      const In* from = in + first * plane;
      float sum[kGroup] = {};
      for (int below = 0; below < taps_y; ++below) {
        for (int right = 0; right < taps_x; ++right) {
          auto one = tap<kTransposed>(resample, shape, y, x, start.y + below, start.x + right);
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            if (first + k < shape.channels) {
              sum[k] += one.weight * widened(from[k * plane + one.index]);
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (first + k < shape.channels) {
          out[(first + k) * plane + pixel] = narrowed<Out>(sum[k]);
        }
      }
    }
  }
}

// The parameters are passed by value: the stage lies in shared memory, where a store to `out` may
// change it for all that the compiler knows.
template <bool kTransposed, class In, class Out>
__device__ __forceinline__ void apply(
    const Stage<float>& stage, const Shape& shape, const In* in, Out* out, float* warp_sums) {
  switch (stage.family) {
    case kColor:
      recolor(stage.color, shape, in, out, warp_sums);
      break;
    case kScale:
    case kRotate:
      interpolate<kTransposed>(stage.resample, shape, in, out);
      break;
    default:
      rearrange(stage.move, shape, in, out);
  }
}

// `workspace` is null where the buffers fit into shared memory. One block per multiprocessor: a
// batch seldom has many more samples than that, and the taps' loads want registers.
template <bool kTransposed, class T>
__global__ void __launch_bounds__(kThreads, 1)
    run_chain(Call call, const T* in, T* out, float* workspace) {
  extern __shared__ float shared_buffers[];
  __shared__ Stage<float> stages[kMaxFamilies];
  __shared__ float warp_sums[32];
  int64_t sample = blockIdx.x, elements = call.shape.elements();
  int count = call.chain.count, step = threadIdx.x;
  if (step < count) {
    uint64_t seed = call.seed_on_device ? static_cast<uint64_t>(*call.seed_on_device) : call.seed;
    int position = kTransposed ? count - 1 - step : step;
    stages[step] = draw<float>(call.chain, seed, sample, position, call.shape, kTransposed);
  }
  __syncthreads();
  in += sample * elements;
  out += sample * elements;
  if (count == 0) {
    for (int i = threadIdx.x; i < elements; i += blockDim.x) out[i] = in[i];
  } else if (count == 1) {
    apply<kTransposed>(stages[0], call.shape, in, out, warp_sums);
  } else {
    float* from = workspace ? workspace + sample * call.buffers() * elements : shared_buffers;
    float* to = from + elements;
    apply<kTransposed>(stages[0], call.shape, in, from, warp_sums);
    __syncthreads();
    for (int middle = 1; middle < count - 1; ++middle) {
      apply<kTransposed>(stages[middle], call.shape, from, to, warp_sums);
      __syncthreads();
      float* other = from;
      from = to;
      to = other;
    }
    apply<kTransposed>(stages[count - 1], call.shape, from, out, warp_sums);
  }
}

int64_t shared_memory_limit(int device) {
  int bytes = 0;
  STD_CUDA_CHECK(
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

template <bool kTransposed, class T>
void launch(const Call& call, const Tensor& in, const Tensor& out) {
  int device = in.get_device_index();
  int64_t elements = int64_t{call.buffers()} * call.shape.elements();
  int64_t bytes = elements * static_cast<int64_t>(sizeof(float));
  OptionalTensor workspace;
  if (bytes + kOwnSharedMemory > shared_memory_limit(device)) {
    workspace = torch::stable::new_empty(
        in, {in.size(0) * elements}, torch::headeronly::ScalarType::Float);
    bytes = 0;
  }
  auto kernel = run_chain<kTransposed, T>;
  if (bytes + kOwnSharedMemory > kDefaultSharedMemory) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  int threads = std::min(kThreads, (call.shape.plane() + 31) / 32 * 32);
  kernel<<<static_cast<unsigned>(in.size(0)), threads, bytes, current_stream(device)>>>(
      call, static_cast<const T*>(in.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
      workspace ? workspace->mutable_data_ptr<float>() : nullptr);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <bool kTransposed>
void run(
    const Tensor& in, const std::vector<int64_t>& families, int64_t seed,
    const OptionalTensor& seed_on_device, bool shared, bool linear, const Tensor& out) {
  Check check("diff_augment", "images", in, ScalarType::Float, ScalarType::BFloat16);
  check.demand(in.dim() == 4, "images", "takes four dimensions");
  check.reads("images", in, {in.size(0), in.size(1), in.size(2), in.size(3)});
  if (seed_on_device) check.reads_whole_numbers("seed_on_device", *seed_on_device, {});
  check.writes("out", out, {in.size(0), in.size(1), in.size(2), in.size(3)});
  if (in.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(in.get_device_index());
  Call call{
      chain_of(families, shared, linear), shape_of(in.size(1), in.size(2), in.size(3)),
      static_cast<uint64_t>(seed),
      seed_on_device ? seed_on_device->const_data_ptr<int64_t>() : nullptr};
  if (check.dtype() == ScalarType::Float) {
    launch<kTransposed, float>(call, in, out);
  } else {
    launch<kTransposed, __nv_bfloat16>(call, in, out);
  }
}

void forward(
    Tensor images, std::vector<int64_t> families, int64_t seed, OptionalTensor seed_on_device,
    bool shared, bool linear, Tensor out) {
  run<false>(images, families, seed, seed_on_device, shared, linear, out);
}

void adjoint(
    Tensor cotangent, std::vector<int64_t> families, int64_t seed, OptionalTensor seed_on_device,
    bool shared, Tensor out) {
  run<true>(cotangent, families, seed, seed_on_device, shared, true, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iadd_fast_native, CUDA, library) {
  library.impl("diff_augment", TORCH_BOX(&forward));
  library.impl("diff_augment_adjoint", TORCH_BOX(&adjoint));
}

}  // namespace iadd::diff_augment
