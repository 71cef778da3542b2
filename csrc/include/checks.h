// What a binding verifies before it reads a pointer. Python has said everything a user can get wrong
// in better words; these checks keep a direct call of torch.ops.iadd_fast_native.* from reading or
// writing memory that is not the tensors' own. All of it is metadata: some tens of nanoseconds a
// tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace iadd {

using torch::headeronly::ScalarType;

// How a tensor lies in memory: the strides of sizes of 1 say nothing.
enum class Layout { kContiguous, kChannelsLast };

class Check {
 public:
  using Tensor = torch::stable::Tensor;
  using Optional = std::optional<Tensor>;
  using Sizes = std::initializer_list<int64_t>;

  // Every tensor has to have the device of `model`, and its dtype, one of the two.
  Check(const char* op, const char* name, const Tensor& model, ScalarType one, ScalarType other)
      : op_(op), model_(name), device_(model.device()), dtype_(model.scalar_type()) {
    demand(dtype_ == one || dtype_ == other, name, [&](std::ostream& out) {
      out << "got " << toString(dtype_) << "; takes " << toString(one) << " or "
          << toString(other);
    });
  }

  ScalarType dtype() const { return dtype_; }

  void demand(bool holds, const char* name, const char* message) const {
    demand(holds, name, [&](std::ostream& out) { out << message; });
  }

  // A tensor of as many dimensions, all sizes at least 1; only then its sizes may be asked for.
  void dimensions(const char* name, const Tensor& x, int64_t count) const {
    bool holds = x.dim() == count;
    for (int64_t i = 0; holds && i < count; ++i) holds = x.size(i) >= 1;
    demand(holds, name, [&](std::ostream& out) {
      out << "got " << described(x) << "; takes " << count << " dimensions without an empty one";
    });
  }

  void reads(const char* name, const Tensor& x, Sizes sizes, Layout layout = Layout::kContiguous) {
    check(name, x, sizes, dtype_, layout);
    if (x.numel() > 0) remember(name, x, x.const_data_ptr(), false);
  }
  void reads(const char* name, const Optional& x, Sizes sizes,
             Layout layout = Layout::kContiguous) {
    if (x) reads(name, *x, sizes, layout);
  }
  void reads_whole_numbers(const char* name, const Tensor& x, Sizes sizes) {
    check(name, x, sizes, ScalarType::Long, Layout::kContiguous);
    if (x.numel() > 0) remember(name, x, x.const_data_ptr(), false);
  }

  // An output may share no memory with what is named before it: its inputs and other outputs.
  void writes(const char* name, const Tensor& x, Sizes sizes, Layout layout = Layout::kContiguous) {
    writes(name, x, sizes, layout, dtype_);
  }
  void writes(const char* name, const Tensor& x, Sizes sizes, Layout layout, ScalarType dtype) {
    check(name, x, sizes, dtype, layout);
    if (x.numel() > 0) remember(name, x, x.mutable_data_ptr(), true);
  }
  void writes(const char* name, const Optional& x, Sizes sizes,
              Layout layout = Layout::kContiguous) {
    if (x) writes(name, *x, sizes, layout);
  }

 private:
  struct Range {
    const char* name;
    uintptr_t begin, end;
  };
  static constexpr int kMost = 16;

  template <class Say>
  void demand(bool holds, const char* name, Say say) const {
    if (holds) return;
    std::ostringstream out;
    out << op_ << ": " << name << ": ";
    say(out);
    throw std::invalid_argument(out.str());
  }

  static std::string described(const Tensor& x) {
    std::ostringstream out;
    out << toString(x.scalar_type()) << " of sizes (";
    for (int64_t i = 0; i < x.dim(); ++i) out << (i ? ", " : "") << x.size(i);
    out << ") and strides (";
    for (int64_t i = 0; i < x.dim(); ++i) out << (i ? ", " : "") << x.stride(i);
    out << ")";
    return out.str();
  }

  static bool lies(const Tensor& x, Layout layout) {
    if (layout == Layout::kContiguous) return x.is_contiguous();
    int64_t expected = 1;
    for (int64_t dimension : {1, 3, 2, 0}) {
      int64_t size = x.size(dimension);
      if (size != 1 && x.stride(dimension) != expected) return false;
      expected *= size;
    }
    return true;
  }

  void check(const char* name, const Tensor& x, Sizes sizes, ScalarType dtype,
             Layout layout) const {
    demand(x.device() == device_, name, [&](std::ostream& out) {
      out << "is on another device than " << model_;
    });
    bool fits = x.scalar_type() == dtype && x.dim() == static_cast<int64_t>(sizes.size());
    int64_t dimension = 0;
    for (int64_t size : sizes) fits = fits && x.size(dimension++) == size;
    demand(fits && lies(x, layout), name, [&](std::ostream& out) {
      out << "got " << described(x) << "; takes " << toString(dtype) << " of sizes (";
      const char* between = "";
      for (int64_t size : sizes) {
        out << between << size;
        between = ", ";
      }
      out << "), " << (layout == Layout::kContiguous ? "contiguous" : "channels-last");
    });
  }

  void remember(const char* name, const Tensor& x, const void* data, bool written) {
    auto begin = reinterpret_cast<uintptr_t>(data);
    uintptr_t size = x.element_size(), end = begin + static_cast<uintptr_t>(x.numel()) * size;
    demand(begin % size == 0, name, "its memory is not aligned to its dtype; takes a copy of it");
    for (int i = 0; written && i < count_; ++i) {
      demand(end <= ranges_[i].begin || ranges_[i].end <= begin, name, [&](std::ostream& out) {
        out << "shares memory with " << ranges_[i].name;
      });
    }
    if (count_ == kMost) throw std::logic_error("checks.h: more arguments than kMost");
    ranges_[count_++] = {name, begin, end};
  }

  const char *op_, *model_;
  torch::stable::Device device_;
  ScalarType dtype_;
  Range ranges_[kMost];
  int count_ = 0;
};

}  // namespace iadd
