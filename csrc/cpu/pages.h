// Large outputs are new memory at every call (the C library gives blocks of this size back to the
// system), and faulting in 4 KiB pages takes longer than filling them does.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace iadd {

// A hint for a buffer about to be written: back its whole 2 MiB pieces by huge pages.
inline void prefer_huge_pages(void* buffer, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t piece = uintptr_t(1) << 21;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(buffer) + piece - 1) / piece * piece;
  uintptr_t end = (reinterpret_cast<uintptr_t>(buffer) + bytes) / piece * piece;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace iadd
