// Several versions of a CPU function in one binary, the widest one that the machine has chosen when
// the library is loaded: one build serves an old server and a new one.
#pragma once

#ifdef __SANITIZE_ADDRESS__
// The choice would be made before AddressSanitizer is ready for it, and what it watches takes minutes
// to compile in one piece.
#define IADD_FLATTEN
#define IADD_CLONES
#else
#define IADD_FLATTEN flatten
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define IADD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define IADD_CLONES __attribute__((flatten))
#endif
#endif
