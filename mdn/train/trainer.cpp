#include "mdn/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <map>
#include <numbers>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/json.h"
#include "mdn/layers/attention.h"

namespace mdn::train {
namespace {

constexpr const char* kRandomState = "rng.cpu";

c10::Device checked_device(const std::string& name) {
  try {
    const c10::Device device(name);
    MDN_CHECK(device.is_cpu() || (device.is_cuda() && at::hasCUDA()),
              "device '{}' is not available here; use cpu, or cuda where a build with CUDA finds a "
              "GPU",
              name);
    return device;
  } catch (const c10::Error&) {
    MDN_THROW("device '{}' is unknown; allowed: cpu, cuda, cuda:N", name);
  }
}

at::ScalarType parameter_type(const TrainConfig& config) {
  return config.dtype == "float64" ? at::kDouble : at::kFloat;
}

model::Decoder make_decoder(const TrainConfig& config, int64_t data_vocabulary) {
  const c10::Device device = checked_device(config.device);
  if (config.threads > 0) {
    at::set_num_threads(static_cast<int>(config.threads));
  }
  layers::set_deterministic_attention(config.deterministic);
  model::Config shape = model::parse_config(config.model, "model");
  MDN_CHECK(shape.vocab_size >= data_vocabulary,
            "the model's vocab_size is {}, but the data's tokenizer has {} tokens",
            shape.vocab_size, data_vocabulary);
  const at::ScalarType type = parameter_type(config);
  model::Parameters parameters =
      config.init_from.empty()
          ? model::Parameters::initialise(shape, static_cast<uint64_t>(config.seed), type, device)
          : model::Parameters::load(shape, config.init_from, type, device);
  parameters.set_requires_grad(true);
  const at::ScalarType compute = config.dtype == "bfloat16" ? at::kBFloat16 : type;
  return {std::move(shape), std::move(parameters), compute};
}

// torch's own generator draws nothing in training today; it is seeded and carried along so that a
// layer that would draw (dropout) resumes like everything else.
at::Generator generator() {
  return at::detail::getDefaultCPUGenerator();
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, const data::TokenDataset& data,
                 const Tokenizer& tokenizer)
    : config_(config),
      data_(data),
      tokenizer_(tokenizer),
      device_(checked_device(config.device)),
      decoder_(make_decoder(config, data.manifest().vocab_size)),
      optimizer_(decoder_.parameters(), {.beta1 = config.beta1,
                                         .beta2 = config.beta2,
                                         .eps = config.eps,
                                         .weight_decay = config.weight_decay}),
      batches_(data.train(), {.order = data::row_order_from_name(config.order),
                              .rows = config.rows,
                              .length = config.length,
                              .separate_documents = config.separate_documents,
                              .seed = config.order_seed()}) {
  at::Generator random = generator();
  random.set_current_seed(static_cast<uint64_t>(config.seed));
}

at::Tensor Trainer::loss(const data::Batch& batch) const {
  const bool packed = !batch.cu_seqlens.empty();
  const std::vector<int64_t> shape = packed ? std::vector<int64_t>{1, batch.rows * batch.length}
                                            : std::vector<int64_t>{batch.rows, batch.length};
  const auto tensor = [&](const std::vector<int64_t>& values, at::IntArrayRef sizes) {
    // from_blob takes no const pointer; the tensor is only read
    return at::from_blob(const_cast<int64_t*>(values.data()), sizes, at::kLong);
  };
  const layers::Sequences sequences =
      packed
          ? layers::Sequences(
                tensor(batch.cu_seqlens, {static_cast<int64_t>(batch.cu_seqlens.size())}).clone())
          : layers::Sequences();
  return decoder_.loss(tensor(batch.inputs, shape).to(device_, false, true),
                       tensor(batch.targets, shape).to(device_, false, true), sequences);
}

StepResult Trainer::step(double learning_rate) {
  for (model::Parameter& p : decoder_.parameters().entries()) {
    p.value.mutable_grad().reset();
  }
  std::vector<data::Batch> micro;
  int64_t targets = 0;
  StepResult result;
  for (int64_t i = 0; i < config_.accumulate; ++i) {
    micro.push_back(batches_.next());
    targets += micro.back().predicted();
    result.tokens += static_cast<int64_t>(micro.back().inputs.size());
  }
  MDN_CHECK(targets > 0, "a step of {} tokens has nothing to predict: every document is one token",
            result.tokens);
  // The mean over all targets of the step: each micro-batch counts by its share of them. Losses are
  // read once everything is queued, so that a GPU never waits for the host within a step.
  std::vector<at::Tensor> parts;
  for (const data::Batch& batch : micro) {
    const int64_t own = batch.predicted();
    if (own == 0) {
      continue;
    }
    const double share = static_cast<double>(own) / static_cast<double>(targets);
    at::Tensor part = loss(batch);
    if (own != targets) {
      part = part * share;
    }
    part.backward();
    parts.push_back(part.detach());
  }
  result.gradient_norm = gradient_norm(decoder_.parameters());
  for (const at::Tensor& part : parts) {
    result.loss += part.item<double>();
  }
  if (!std::isfinite(result.loss)) {
    result.bad = "loss";
    return result;
  }
  if (!std::isfinite(result.gradient_norm)) {
    result.bad = first_bad_gradient(decoder_.parameters());
    if (result.bad.empty()) {
      result.bad = "the norm of all gradients together";
    }
    return result;
  }
  if (config_.clip > 0 && result.gradient_norm > config_.clip) {
    scale_gradients(decoder_.parameters(), config_.clip / result.gradient_norm);
  }
  optimizer_.step(learning_rate);
  return result;
}

Evaluation Trainer::evaluate(int64_t max_tokens) const {
  const at::NoGradGuard no_grad;
  data::EvaluationBatches batches(data_.val(), {.rows = config_.evaluation_rows(),
                                                .length = config_.evaluation_length(),
                                                .separate_documents = config_.separate_documents,
                                                .max_tokens = max_tokens,
                                                .documents = config_.order == "documents"});
  double sum = 0;
  Evaluation result;
  data::Batch batch;
  while (batches.next(batch)) {
    const int64_t predicted = batch.predicted();
    if (predicted > 0) {
      sum += loss(batch).item<double>() * static_cast<double>(predicted);
      result.targets += predicted;
    }
  }
  MDN_CHECK(result.targets > 0, "the held-out split has nothing to predict");
  result.loss = sum / static_cast<double>(result.targets);
  result.bits_per_byte = result.loss / std::numbers::ln2 *
                         static_cast<double>(data_.val().tokens()) /
                         static_cast<double>(data_.val().text_bytes());
  return result;
}

void Trainer::save(const std::filesystem::path& folder, TrainerState state) const {
  write_file_atomically(folder / "config.json", decoder_.config().json);
  decoder_.parameters().save(folder);
  tokenizer_.save(folder);

  std::vector<TensorInfo> infos;
  std::map<std::string, at::Tensor> tensors;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    infos.push_back(model::info_of(name, tensor));
    tensors.emplace(name, tensor);
  };
  for (const auto& [name, tensor] : optimizer_.state()) {
    add(name, tensor);
  }
  add(kRandomState, generator().get_state());
  at::Tensor current;  // keeps the bytes alive until the writer asks for the next tensor
  const auto bytes = [&](const TensorInfo& info) {
    current = tensors.at(info.name).to(at::kCPU).contiguous();
    return model::bytes_of(current);
  };
  write_safetensors(folder / kOptimizerFile, infos, bytes);

  state.optimizer_step = optimizer_.updates();
  state.position = batches_.position();
  write_file_atomically(folder / kTrainerFile, state.to_json().dump(2) + "\n");
}

TrainerState Trainer::load(const std::filesystem::path& folder) {
  const Json json = read_json(folder / kTrainerFile);
  TrainerState state = TrainerState::from_json(JsonObject(json, (folder / kTrainerFile).string()));
  const Json stored = read_json(folder / "config.json");
  const Json own = parse_json(decoder_.config().json, "model");
  for (const auto& [a, b] : {std::pair(&own, &stored), std::pair(&stored, &own)}) {
    for (const auto& item : a->items()) {
      MDN_CHECK(b->contains(item.key()) && b->at(item.key()) == item.value(),
                "{}: the model's '{}' is {} in the checkpoint and {} in this run", folder.string(),
                item.key(), stored.contains(item.key()) ? stored.at(item.key()).dump() : "absent",
                own.contains(item.key()) ? own.at(item.key()).dump() : "absent");
    }
  }
  batches_.seek(state.position);

  const SafetensorsSet weights(folder);
  const at::ScalarType type = parameter_type(config_);
  {
    const at::NoGradGuard no_grad;
    const model::Parameters loaded = model::Parameters::load(decoder_.config(), folder, type);
    for (model::Parameter& p : decoder_.parameters().entries()) {
      const at::Tensor value = model::to_tensor(weights.at(p.spec.name));
      MDN_CHECK(value.scalar_type() == type, "{}: '{}' is {}; a run with dtype {} resumes from {}",
                folder.string(), p.spec.name, c10::toString(value.scalar_type()), config_.dtype,
                c10::toString(type));
      p.value.copy_(loaded.at(p.spec.name));
    }
  }
  const SafetensorsFile optimizer(folder / kOptimizerFile);
  optimizer_.load(optimizer, state.optimizer_step, {kRandomState});
  at::Generator random = generator();
  random.set_state(model::to_tensor(optimizer.at(kRandomState)));
  return state;
}

}  // namespace mdn::train
