// What must hold for an input that was accepted: checked in fuzz targets, where a failure must end
// the process so that the fuzzer keeps the input.
#pragma once

#include <cstdio>
#include <cstdlib>

#define MDN_FUZZ_REQUIRE(condition)                                                       \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)
