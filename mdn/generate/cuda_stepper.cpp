#include "mdn/generate/cuda_stepper.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <bit>

#include "mdn/core/error.h"
#include "mdn/generate/device_sampler.h"
#include "mdn/kernels/cuda/check.h"

namespace mdn::generate {
namespace {

// The batch sizes that are captured: powers of two, from 16 on its multiples.
int64_t captured_size(int64_t B) {
  constexpr int64_t kMultiple = 16;
  int64_t size = 1;
  while (size < B && size < kMultiple) {
    size *= 2;
  }
  return size >= B ? size : (B + kMultiple - 1) / kMultiple * kMultiple;
}

// The tensors of several states of one model, field by field, where the first has one.
template <typename Body>
void each_field(model::DecoderState& a, model::DecoderState& b, const Body& body) {
  for (size_t i = 0; i < a.layers.size(); ++i) {
    const auto fields_a = layers::state_fields(a.layers[i]);
    const auto fields_b = layers::state_fields(b.layers[i]);
    for (size_t f = 0; f < fields_a.size(); ++f) {
      if (fields_a[f].second->defined()) {
        body(*fields_a[f].second, *fields_b[f].second);
      }
    }
  }
}

// [B, 2] int64: the drawn tokens, and the bits of the largest logits in float32.
at::Tensor drawn_of(const at::Tensor& logits, const SamplerOptions& options,
                    const at::Tensor& uniform) {
  const at::Tensor largest = logits.amax(1, true).to(at::kFloat);
  return at::cat({draw(logits, options, uniform), largest.view(at::kInt).to(at::kLong)}, 1);
}

at::Tensor pinned(at::IntArrayRef shape, at::ScalarType type) {
  return at::empty(shape, at::TensorOptions(type).pinned_memory(true));
}

cudaStream_t current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

// Copies from pinned memory, which is not written before the next wait, to the first elements.
template <typename T>
void to_device(const std::vector<T>& values, const at::Tensor& host, const at::Tensor& place) {
  T* const memory = host.mutable_data_ptr<T>();
  std::copy(values.begin(), values.end(), memory);
  MDN_CUDA_CHECK(cudaMemcpyAsync(place.mutable_data_ptr<T>(), memory, values.size() * sizeof(T),
                                 cudaMemcpyHostToDevice, current_stream()));
}

}  // namespace

struct CudaStepper::Graph {
  at::cuda::CUDAGraph graph;
  at::Tensor logits, drawn;  // overwritten by every replay
};

bool CudaStepper::supports(const model::Decoder& decoder) {
  return DeviceStep::supports(decoder);
}

CudaStepper::CudaStepper(const model::Decoder& decoder)
    : device_(decoder.weights().embeddings.device()), step_(decoder) {
  MDN_CHECK(supports(decoder),
            "the stepper needs a model on a CUDA device, without attention layers that have no "
            "kernels");
}

CudaStepper::~CudaStepper() = default;

void CudaStepper::make_pool(const model::DecoderState& like, int64_t capacity) {
  graphs_.clear();  // they read the old pool
  capacity_ = capacity;
  pool_ = like;
  model::DecoderState shapes = like;
  each_field(shapes, pool_, [&](const at::Tensor& one, at::Tensor& place) {
    std::vector<int64_t> shape = one.sizes().vec();
    shape[0] = capacity;
    place = at::zeros(shape, one.options());
  });
  ids_ = at::zeros({capacity}, at::TensorOptions(at::kLong).device(device_));
  positions_ = at::zeros_like(ids_);
  uniform_ = at::zeros({capacity}, at::TensorOptions(at::kDouble).device(device_));
  host_ids_ = pinned({capacity}, at::kLong);
  host_positions_ = pinned({capacity}, at::kLong);
  host_uniform_ = pinned({capacity}, at::kDouble);
  host_drawn_ = pinned({capacity, 2}, at::kLong);
}

// Whether the pool's rows have the shapes of the state's: larger caches need another pool.
bool CudaStepper::fits_pool(model::DecoderState& state) {
  bool fits = true;
  each_field(state, pool_, [&](const at::Tensor& own, const at::Tensor& place) {
    fits = fits && own.sizes().slice(1) == place.sizes().slice(1);
  });
  return fits;
}

// Makes the first rows of the pool the state, with its values, unless they are it already.
void CudaStepper::bind(model::DecoderState& state, int64_t B) {
  bool bound = false;
  each_field(state, pool_, [&](at::Tensor& own, at::Tensor& place) {
    bound = bound || own.is_alias_of(place);
    if (!bound) {
      const at::Tensor rows = place.narrow(0, 0, B);
      rows.copy_(own);
      own = rows;
    }
  });
}

CudaStepper::Graph& CudaStepper::graph_of(int64_t size, const SamplerOptions& options) {
  std::unique_ptr<Graph>& found =
      graphs_[{size, options.temperature, options.top_k, options.top_p, options.min_p}];
  if (found) {
    return *found;
  }
  auto made = std::make_unique<Graph>();
  model::DecoderState state = pool_;
  each_field(pool_, state,
             [&](const at::Tensor& place, at::Tensor& rows) { rows = place.narrow(0, 0, size); });
  const at::Tensor ids = ids_.narrow(0, 0, size), positions = positions_.narrow(0, 0, size),
                   uniform = uniform_.narrow(0, 0, size);
  const auto run = [&] {
    made->logits = step_(ids, positions, state);
    made->drawn = drawn_of(made->logits, options, uniform);
  };
  c10::cuda::device_synchronize();  // what the pool holds was written on another stream
  const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromPool(false, device_.index()));
  run();  // loads the kernels and makes cuBLAS's workspaces, which a capture may not
  c10::cuda::device_synchronize();
  made->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  run();
  made->graph.capture_end();
  found = std::move(made);
  return *found;
}

CudaStepper::Next CudaStepper::fetch_logits(const at::Tensor& logits) {
  if (!host_logits_.defined() || host_logits_.size(0) < logits.size(0)) {
    host_logits_ = pinned(logits.sizes(), at::kFloat);
  }
  Next next;
  next.logits = host_logits_.narrow(0, 0, logits.size(0));
  next.logits.copy_(logits.to(at::kFloat));
  return next;
}

CudaStepper::Next CudaStepper::fetch_drawn(const at::Tensor& drawn, const at::Tensor& host,
                                           int64_t B) {
  const auto stream = current_stream();
  int64_t* const values = host.mutable_data_ptr<int64_t>();
  MDN_CUDA_CHECK(cudaMemcpyAsync(values, drawn.const_data_ptr<int64_t>(),
                                 static_cast<size_t>(2 * B) * sizeof(int64_t),
                                 cudaMemcpyDeviceToHost, stream));
  MDN_CUDA_CHECK(cudaStreamSynchronize(stream));
  Next next;
  for (int64_t row = 0; row < B; ++row) {
    next.ids.push_back(values[2 * row]);
    next.largest.push_back(std::bit_cast<float>(static_cast<int32_t>(values[2 * row + 1])));
  }
  return next;
}

CudaStepper::Next CudaStepper::step(const std::vector<int64_t>& ids,
                                    const std::vector<int64_t>& positions,
                                    model::DecoderState& state, const Drawing* drawing) {
  const auto B = static_cast<int64_t>(ids.size());
  const int64_t size = captured_size(B);
  const c10::cuda::CUDAGuard guard(device_);
  if (size > capacity_ || !fits_pool(state)) {
    make_pool(state, std::max(size, capacity_));
  }
  // Before the state is in the pool: a capture runs the step once.
  Graph& graph = graph_of(size, drawing ? drawing->options : SamplerOptions{.temperature = 0});
  bind(state, B);
  to_device(ids, host_ids_, ids_);
  to_device(positions, host_positions_, positions_);
  if (drawing) {
    to_device(drawing->uniform, host_uniform_, uniform_);
  }
  graph.graph.replay();
  state.position += 1;
  return drawing ? fetch_drawn(graph.drawn, host_drawn_, B)
                 : fetch_logits(graph.logits.narrow(0, 0, B));
}

CudaStepper::Next CudaStepper::step_alone(int64_t id, int64_t position, model::DecoderState& state,
                                          const Drawing* drawing) {
  const c10::cuda::CUDAGuard guard(device_);
  const at::Tensor ids = at::full({1}, id, at::TensorOptions(at::kLong).device(device_));
  const at::Tensor logits = step_(ids, at::full_like(ids, position), state);
  state.position += 1;
  if (!drawing) {
    return fetch_logits(logits);
  }
  const double u = drawing->uniform.empty() ? 0 : drawing->uniform.front();
  const at::Tensor uniform = at::full({1}, u, ids.options().dtype(at::kDouble));
  return fetch_drawn(drawn_of(logits, drawing->options, uniform), at::empty({1, 2}, at::kLong), 1);
}

}  // namespace mdn::generate
