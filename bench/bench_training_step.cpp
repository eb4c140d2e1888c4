// One training step of a model on this machine: time, memory, and on a GPU what it is spent on.
//
//   bench_training_step [CONFIG] [ROWS] [LENGTH] [DEVICE] [DTYPE] [STEPS] [ATTENTION] [DOCUMENT]
//
// ATTENTION names libtorch's backend of softmax attention: chosen (by the program), cudnn or
// flash. With DOCUMENT the rows are packed and divided into documents of 1 to 2 DOCUMENT - 1
// tokens, kept apart. default: configs/mdn_400m.json 8 4096 cuda bfloat16 20 chosen 0. A step is
// forward, loss, backward, clipping of the gradients and AdamW over float32 masters, as mdn train
// does it, on random tokens. The time is the median over STEPS after three; the profile is one more
// step under libtorch's profiler, which slows it by a few percent.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "bench/wait_for.h"
#include "mdn/core/error.h"
#include "mdn/model/decoder.h"
#include "mdn/train/optimizer.h"

#ifdef MDN_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace mdn::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double gibibytes(int64_t bytes) {
  return static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30);
}

/// Peak of the memory in tensors since the last call with `reset`; 0 on the CPU.
int64_t peak_memory(c10::Device device, bool reset) {
#ifdef MDN_CUDA
  if (device.is_cuda()) {
    const auto index = static_cast<c10::DeviceIndex>(device.has_index() ? device.index() : 0);
    if (reset) {
      c10::cuda::CUDACachingAllocator::resetPeakStats(index);
    }
    return c10::cuda::CUDACachingAllocator::getDeviceStats(index).allocated_bytes[0].peak;
  }
#endif
  return 0;
}

struct Stage {
  const char* name;
  double seconds = 0;
};

/// Where documents of 1 to 2 `document` - 1 tokens start and rows end, as mdn train packs rows.
at::Tensor document_bounds(int64_t rows, int64_t length, int64_t document) {
  std::mt19937_64 random(1);
  std::vector<int64_t> bounds = {0};
  for (int64_t end = length; end <= rows * length; end += length) {
    while (bounds.back() < end) {
      const auto tokens =
          1 + static_cast<int64_t>(random() % (2 * static_cast<uint64_t>(document) - 1));
      bounds.push_back(std::min(end, bounds.back() + tokens));
    }
  }
  return at::tensor(bounds, at::kLong);
}

class Step {
 public:
  Step(model::Decoder& decoder, int64_t rows, int64_t length, int64_t document, c10::Device device)
      : decoder_(decoder), optimizer_(decoder.parameters(), {}), device_(device) {
    const int64_t vocab = decoder.config().vocab_size;
    const std::vector<int64_t> shape =
        document > 0 ? std::vector<int64_t>{1, rows * length} : std::vector<int64_t>{rows, length};
    ids_ = at::randint(vocab, shape, at::TensorOptions(at::kLong)).to(device);
    targets_ = at::randint(vocab, shape, at::TensorOptions(at::kLong)).to(device);
    if (document > 0) {
      bounds_ = document_bounds(rows, length, document);
    }
  }

  /// Returns the loss. Waits for the device after each stage when `stages` is given.
  double operator()(std::vector<Stage>* stages = nullptr) {
    Clock::time_point start = Clock::now();
    const auto done = [&](const char* name) {
      if (stages) {
        wait_for(device_);
        stages->push_back({name, seconds_since(start)});
        start = Clock::now();
      }
    };
    for (model::Parameter& p : decoder_.parameters().entries()) {
      p.value.mutable_grad().reset();
    }
    const layers::Sequences sequences =
        bounds_.defined() ? layers::Sequences(bounds_) : layers::Sequences();
    at::Tensor loss = decoder_.loss(ids_, targets_, sequences);
    done("forward and loss");
    loss.backward();
    done("backward");
    const double norm = train::gradient_norm(decoder_.parameters());
    if (norm > 1) {
      train::scale_gradients(decoder_.parameters(), 1 / norm);
    }
    done("norm and clipping of gradients");
    optimizer_.step(1e-4);
    done("AdamW");
    return loss.item<double>();
  }

 private:
  model::Decoder& decoder_;
  train::AdamW optimizer_;
  c10::Device device_;
  at::Tensor ids_, targets_;
  at::Tensor bounds_;  // of packed documents
};

/// The part of a step that a kernel belongs to, by what its name contains; the first that fits.
const char* part_of(const std::string& kernel) {
  static constexpr std::pair<const char*, const char*> kParts[] = {
      {"nvjet", "matrix products"},
      {"gemm", "matrix products"},
      {"splitKreduce", "matrix products"},
      {"sdpa", "attention"},
      {"flash", "attention"},
      {"compute_dot_do_o", "attention"},
      {"convert_dq", "attention"},
      {"mdn::kernels::cuda::backward_pass", "delta rule, backward"},
      {"mdn::kernels::cuda::hopper", "delta rule, forward"},
      {"mdn::kernels::cuda::kimi", "delta rule of KDA"},
      {"short_conv", "short convolution"},
      {"rms_norm", "norms"},
      {"swiglu", "SwiGLU"},
      {"cross_entropy", "loss, without its products"},
      {"_gates", "gates"},
      {"rotary", "rotation"},
      {"column_sums", "sums over tokens of partial sums"},
      {"FusedOptimizer", "AdamW"},
      {"LpNorm", "norm of the gradients"},
      {"CUDAFunctor_add", "sums of residuals and gradients"},
  };
  for (const auto& [name, part] : kParts) {
    if (kernel.find(name) != std::string::npos) {
      return part;
    }
  }
  return "all else";
}

/// Kernels by name: how often and how long, of one step.
void print_profile(const std::function<void()>& step) {
  namespace profiler = torch::autograd::profiler;
  using torch::profiler::impl::ActivityType;
  using torch::profiler::impl::ProfilerConfig;
  using torch::profiler::impl::ProfilerState;
  const ProfilerConfig config(ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  step();
  const auto result = profiler::disableProfiler();
  struct Kernel {
    std::string name;
    int64_t count = 0;
    double ms = 0;
  };
  std::map<std::string, Kernel> kernels;
  std::map<std::string, double> parts;
  double total = 0;
  uint64_t first = UINT64_MAX, last = 0;
  for (const auto& event : result->events()) {
    if (event.deviceType() == c10::DeviceType::CUDA) {
      Kernel& kernel = kernels[event.name()];
      kernel.name = event.name();
      ++kernel.count;
      const double ms = static_cast<double>(event.durationNs()) * 1e-6;
      kernel.ms += ms;
      parts[part_of(kernel.name)] += ms;
      total += ms;
      first = std::min(first, event.startNs());
      last = std::max(last, event.endNs());
    }
  }
  std::vector<Kernel> sorted;
  for (const auto& [name, kernel] : kernels) {
    sorted.push_back(kernel);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Kernel& a, const Kernel& b) { return a.ms > b.ms; });
  const double span = first < last ? static_cast<double>(last - first) * 1e-6 : 0;
  fmt::print("\n{:.1f} ms in kernels of {:.1f} ms from the first to the last\n\n", total, span);
  std::vector<std::pair<double, std::string>> by_time;
  for (const auto& [part, ms] : parts) {
    by_time.emplace_back(ms, part);
  }
  std::sort(by_time.rbegin(), by_time.rend());
  fmt::print("| ms | share | part |\n|---|---|---|\n");
  for (const auto& [ms, part] : by_time) {
    fmt::print("| {:.2f} | {:.1f}% | {} |\n", ms, 100 * ms / total, part);
  }
  fmt::print("\n| ms | share | calls | kernel |\n|---|---|---|---|\n");
  for (const Kernel& kernel : sorted) {
    if (kernel.ms < 0.0005 * total) {
      break;
    }
    std::string name = kernel.name;
    std::replace(name.begin(), name.end(), '|', '/');
    fmt::print("| {:.2f} | {:.1f}% | {} | {} |\n", kernel.ms, 100 * kernel.ms / total, kernel.count,
               name.substr(0, 150));
  }
}

void run(int argc, char** argv) {
  const std::string path = argc > 1 ? argv[1] : "configs/mdn_400m.json";
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 8;
  const int64_t length = argc > 3 ? std::atoll(argv[3]) : 4096;
  const c10::Device device(argc > 4 ? argv[4] : "cuda");
  const std::string dtype = argc > 5 ? argv[5] : "bfloat16";
  const int64_t steps = argc > 6 ? std::atoll(argv[6]) : 20;
  const std::string attention = argc > 7 ? argv[7] : "chosen";
  const int64_t document = argc > 8 ? std::atoll(argv[8]) : 0;
  if (attention != "chosen") {
    at::Context& context = at::globalContext();
    context.setSDPUseCuDNN(attention == "cudnn");
    context.setSDPUseFlash(attention == "flash");
    context.setSDPUseMemEfficient(false);
    context.setSDPUseMath(false);
  }
  const model::Config config = model::read_config(path);
  Clock::time_point start = Clock::now();
  model::Parameters parameters = model::Parameters::initialise(config, 1, at::kFloat, device);
  parameters.set_requires_grad(true);
  model::Decoder decoder(config, std::move(parameters),
                         dtype == "bfloat16"  ? at::kBFloat16
                         : dtype == "float16" ? at::kHalf
                                              : at::kFloat);
  Step step(decoder, rows, length, document, device);
  wait_for(device);
  fmt::print("{}, {} parameters, {} x {} tokens, {} on {}\n\n", path, decoder.parameters().count(),
             rows, length, dtype, device.str());
  fmt::print("| | |\n|---|---|\n| initialisation | {:.2f} s |\n", seconds_since(start));
  start = Clock::now();
  step();
  wait_for(device);
  fmt::print("| first step | {:.3f} s |\n", seconds_since(start));
  step();
  step();
  wait_for(device);
  peak_memory(device, true);
  std::vector<double> seconds;
  double loss = 0;
  for (int64_t i = 0; i < steps; ++i) {
    start = Clock::now();
    loss = step();
    wait_for(device);
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  fmt::print("| step, median of {} ({:.1f} to {:.1f}) | {:.1f} ms |\n", steps,
             seconds.front() * 1e3, seconds.back() * 1e3, median * 1e3);
  fmt::print("| tokens/s | {:.0f} |\n", static_cast<double>(rows * length) / median);
  fmt::print("| peak memory in tensors | {:.2f} GiB |\n", gibibytes(peak_memory(device, false)));
  fmt::print("| loss after {} steps | {:.4f} |\n", steps + 3, loss);
  std::vector<Stage> stages;
  step(&stages);
  for (const Stage& stage : stages) {
    fmt::print("| {} | {:.1f} ms |\n", stage.name, stage.seconds * 1e3);
  }
  std::fflush(stdout);
  if (device.is_cuda()) {
    print_profile([&] {
      step();
      wait_for(device);
    });
  }
}

}  // namespace
}  // namespace mdn::bench

int main(int argc, char** argv) {
  try {
    mdn::bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_training_step: {}\n", error.what());
    return 1;
  }
}
