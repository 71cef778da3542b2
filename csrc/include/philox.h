// Philox 4x32-10 (Salmon et al., SC 2011): a draw needs its seed and its place only, and is the
// same number on every backend.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace iadd {

struct Words {
  uint32_t word[4];
};

// The four words at counter (counter, position, 0, 0) under the 64-bit key `seed`.
IADD_HD Words philox(uint64_t seed, uint32_t counter, uint32_t position) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  Words words{{counter, position, 0, 0}};
  for (int round = 0; round < 10; ++round) {
    uint64_t first = uint64_t{0xD2511F53u} * words.word[0];
    uint64_t second = uint64_t{0xCD9E8D57u} * words.word[2];
    words = {
        {static_cast<uint32_t>(second >> 32) ^ words.word[1] ^ key0, static_cast<uint32_t>(second),
         static_cast<uint32_t>(first >> 32) ^ words.word[3] ^ key1, static_cast<uint32_t>(first)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return words;
}

// The top 24 bits of a word as a number in [0, 1): exact in float32 and float64.
template <class T>
IADD_HD T uniform(uint32_t word) {
  return T(word >> 8) * T(0x1p-24);
}

// A whole number in low..high, both included, by multiply and shift.
IADD_HD int integer(uint32_t word, int low, int high) {
  return low + static_cast<int>((uint64_t{word} * static_cast<uint64_t>(high - low + 1)) >> 32);
}

}  // namespace iadd
