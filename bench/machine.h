// What the CPU itself can do, measured in the run that reports shares of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace mdn::bench {

/// Median and best time of one call, in seconds.
struct Timing {
  double median = 0;
  double best = 0;
};

/// Calls `body` until `seconds` are over, at least `least` times, after one call that is not timed.
Timing time_calls(const std::function<void()>& body, double seconds = 1.0, int least = 5);

/// Processor name, threads, and the instruction set that the kernels chose.
std::string describe_cpu();

/// FLOP/s of a 1024 x 1024 x 1024 float product by the kernels' own tiles on all threads (best
/// call).
double measure_sgemm(double seconds = 1.0);

/// Bytes read and written a second of a copy far beyond the caches, on all threads: the best call
/// of memcpy and of stores that go past the caches, whichever is faster.
double measure_copy(double seconds = 1.0);

}  // namespace mdn::bench
