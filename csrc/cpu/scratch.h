// Work space that a thread keeps between calls: a small call would spend longer on the page faults
// of fresh memory than on its arithmetic.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "pages.h"

namespace iadd {

struct Free {
  void operator()(void* buffer) const { std::free(buffer); }
};

// At least `count` numbers, one buffer for each thread and Tag; valid until the thread's next call
// with that Tag. Its contents are left over from earlier calls.
template <class Tag, class T>
inline T* scratch(int64_t count) {
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t size = 0;
  int64_t bytes = count * int64_t(sizeof(T));
#ifdef __SANITIZE_ADDRESS__
  // New and no larger than asked for, so that a step past its end is seen.
  constexpr int64_t piece = 64;
  bool large_enough = false;
#else
  constexpr int64_t piece = int64_t(1) << 21;
  bool large_enough = bytes <= size;
#endif
  if (!large_enough) {
    buffer.reset();
    size = (bytes + piece - 1) / piece * piece;
    buffer.reset(std::aligned_alloc(piece, size));
    if (!buffer) {
      size = 0;
      throw std::bad_alloc();
    }
    prefer_huge_pages(buffer.get(), size);
  }
  return static_cast<T*>(buffer.get());
}

}  // namespace iadd
