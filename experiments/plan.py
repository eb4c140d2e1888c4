"""What is compared: one table of models, sizes, tasks and seeds, and the list of runs that it gives.

Every model of a size has the parameters of that size's Mamba2, within 2%: Mamba2 has no MLP, so its count moves
in steps of a whole layer, and the others meet it by the inner size of their MLPs.
"""

import json
from dataclasses import dataclass, field, replace

from .parameters import count

TOLERANCE = 0.02
BYTES = 256  # ids that mdn synth's data has at least
GRAIN = 8  # inner sizes are multiples of it, as tensor cores need


@dataclass(frozen=True)
class Model:
    title: str
    model_type: str
    keys: dict = field(default_factory=dict)  # of config.json, beyond the family's
    attention_every: int = 0  # a hybrid: every so many layers attention


FAMILIES = {
    "mdn": Model("MDN", "momentum_deltanet"),
    "gdn": Model("GDN", "gated_deltanet"),
    "comba": Model("Comba", "comba"),
    "kda": Model("KDA", "kda"),
    "mamba2": Model("Mamba2", "mamba2"),
    "transformer": Model("Transformer", "transformer"),
}
ABLATIONS = {
    "mdn_no_momentum": Model("no momentum", "momentum_deltanet", {"use_momentum": False}),
    "mdn_no_correction": Model("no output correction", "momentum_deltanet", {"use_output_correction": False}),
    "mdn_no_clamp": Model("no clamp of mu", "momentum_deltanet", {"min_log_mu": None}),
    "mdn_no_alpha_cap": Model("no cap of alpha", "momentum_deltanet", {"use_alpha_cap": False}),
    "mdn_no_caps": Model("no cap of alpha and beta", "momentum_deltanet",
                         {"use_alpha_cap": False, "use_beta_cap": False}),
    "mdn_predict_from_k": Model("prediction from k", "momentum_deltanet", {"use_p_times_alpha": False}),
    "mdn_nesterov": Model("Nesterov", "momentum_deltanet", {"momentum_kind": "nesterov"}),
    "mdn_quasi_hyperbolic": Model("quasi-hyperbolic", "momentum_deltanet", {"momentum_kind": "quasi_hyperbolic"}),
}
HYBRIDS = {
    "mdn_hybrid": Model("MDN, attention 1 in 4", "momentum_deltanet", attention_every=4),
    "gdn_hybrid": Model("GDN, attention 1 in 4", "gated_deltanet", attention_every=4),
}
MODELS = {**FAMILIES, **ABLATIONS, **HYBRIDS}


@dataclass(frozen=True)
class Shape:
    """Of the models of a size. `mamba2_layers` sets everyone's parameters."""
    hidden_size: int
    layers: int
    mamba2_layers: int
    vocab_size: int
    head_dim: int = 128
    state_size: int = 128  # Mamba2's
    mamba2_head_dim: int = 64
    attention_head_dim: int = 64


@dataclass(frozen=True)
class Training:
    tokens: int
    rows: int
    length: int
    learning_rate: float
    accumulate: int = 1
    eval_tokens: int = 131_072  # of the losses during the run
    checkpoints: int = 1  # beyond those that a stopped run leaves

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.rows * self.length * self.accumulate))

    @property
    def seen(self) -> int:
        """Tokens of whole steps."""
        return self.steps * self.rows * self.length * self.accumulate


@dataclass(frozen=True)
class Synthetic:
    """A task that models are trained on: `train` and `evaluate` are tasks of mdn eval without `examples`."""
    name: str
    train: list[tuple[str, int]]  # and examples
    evaluate: list[str]
    shapes: list[Shape]
    training: Training
    models: list[str]
    rates: list[float] = field(default_factory=list)  # other learning rates, which every family is run with


@dataclass(frozen=True)
class Size:
    shape: Shape
    training: Training
    data: str  # folder of token shards under the corpus's
    language: list[list[str]]  # models of each round, the most telling round first; one more seed each time
    synthetic: list[Synthetic]
    needles: list[int]  # lengths
    examples: int  # of each evaluation that is made up
    limit: int  # of documents that losses are measured on; 0: all held out
    rates: list[float]  # other learning rates, which every family's language model is run with
    assumed_rate: float  # tokens/s of the Transformer, for estimates before there are measured ones


def _mqar(widths: list[int], tokens: int, examples: int, rows: int, longest: int, models: list[str],
          rates: list[float]) -> Synthetic:
    """Zoology's settings: pairs and lengths of training, more lengths in evaluation."""
    settings = [s for s in ((4, 64), (8, 128), (16, 256), (32, 256), (64, 256)) if s[1] <= longest]
    tests = [s for s in ((4, 64), (8, 64), (16, 64), (32, 128), (64, 256)) if s[1] <= longest]
    vocab = 8192 if longest >= 256 else BYTES
    return Synthetic(
        "mqar",
        [(f"mqar:pairs={pairs},length={length},vocab={vocab}", examples) for pairs, length in settings],
        [f"mqar:pairs={pairs},length={length},vocab={vocab}" for pairs, length in tests],
        [Shape(w, 2, 4, vocab, head_dim=min(64, w // 2), state_size=min(64, w // 2), mamba2_head_dim=min(64, w),
               attention_head_dim=min(64, w // 2)) for w in widths],
        Training(tokens, rows, longest, 2e-3), models, rates,
    )


def _state(name: str, width: int, tokens: int, examples: int, rows: int, length: int, models: list[str]) -> Synthetic:
    spec = f"{name}:length={length},vocab={BYTES}"
    return Synthetic(name, [(spec, examples)], [spec + ",extrapolate=4"],
                     [Shape(width, 2, 4, BYTES, head_dim=min(64, width // 2), state_size=min(64, width // 2),
                            mamba2_head_dim=min(64, width), attention_head_dim=min(64, width // 2))],
                     Training(tokens, rows, length, 1e-3), models)


SYNTHETIC_ROUND = 1  # before which of the language models' rounds the tasks come
RATES_ROUND = 5  # together with the second of those rounds that add seeds

_CLOSEST = ["mdn", "gdn", "comba", "kda"]
_EXTENSIONS = ["mdn_nesterov", "mdn_quasi_hyperbolic"]  # slow: a program of batched operations
_PARTS = [name for name in ABLATIONS if name not in _EXTENSIONS]
_ROUNDS = [list(FAMILIES), _CLOSEST, _PARTS, list(HYBRIDS), ["mdn_no_momentum", "mdn", "gdn"],
           ["comba", "kda", "transformer", "mamba2"], _EXTENSIONS]
_RECALL = [*FAMILIES, "mdn_no_momentum"]
_TRACKING = [*_RECALL, *_EXTENSIONS]

SIZES = {
    # Minutes on a CPU: shows that everything works, and nothing else.
    "tiny": Size(
        Shape(64, 2, 4, 256, head_dim=32, state_size=32, attention_head_dim=32),
        Training(16_384, 8, 128, 3e-3, eval_tokens=4096, checkpoints=4), "bytes",
        [list(FAMILIES), ["mdn", "gdn"], ["mdn_no_momentum"]],
        [_mqar([32], 16_384, 200, 16, 64, ["mdn", "gdn"], []), _state("parity", 32, 16_384, 200, 16, 32, ["mdn", "gdn"])],
        [512], 8, 8, [], 20_000,
    ),
    # Two H200s, 20 minutes.
    "small": Size(
        Shape(384, 8, 16, 16_384),
        Training(50_000_000, 32, 1024, 2e-3), "bpe16384", _ROUNDS,
        [_mqar([32, 64, 128], 60_000_000, 47_000, 64, 256, _RECALL, [4e-3, 1e-3]),
         *(_state(name, 128, 30_000_000, 470_000, 256, 64, _TRACKING) for name in ("parity", "s3", "s5"))],
        [512, 1024, 2048], 200, 0, [4e-3, 8e-3], 500_000,
    ),
    # Several GPUs or hours.
    "medium": Size(
        Shape(512, 12, 24, 16_384),
        Training(200_000_000, 64, 1024, 1.5e-3, checkpoints=4), "bpe16384",
        [*_ROUNDS, list(FAMILIES), _PARTS, list(HYBRIDS), _EXTENSIONS],
        [_mqar([32, 64, 128, 256], 200_000_000, 160_000, 64, 256, _TRACKING, [4e-3, 1e-3]),
         *(_state(name, 128, 50_000_000, 800_000, 256, 64, _TRACKING) for name in ("parity", "s3", "s5"))],
        [512, 1024, 2048, 4096], 500, 0, [3e-3, 6e-3], 250_000,
    ),
}

# Cost of a token against the Transformer's at equal parameters, for estimates alone: that of the size small on an
# H200 (22.2M parameters, rows of 1024).
ASSUMED_COST = {"momentum_deltanet": 0.35, "gated_deltanet": 0.46, "kda": 0.52, "comba": 0.55, "mamba2": 0.9,
                "transformer": 1}
ASSUMED_HYBRID_COST = 0.6
ASSUMED_GENERAL_COST = 4.4  # of momentum kinds other than the published one


def config_of(model: Model, shape: Shape, intermediate: int | None = None) -> dict:
    """config.json of a model; `intermediate` is left open for Mamba2."""
    c: dict = {
        "model_type": model.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "tie_word_embeddings": True,
    }
    if model.model_type == "mamba2":
        c |= {"num_hidden_layers": shape.mamba2_layers, "expand": 2, "head_dim": shape.mamba2_head_dim,
              "state_size": shape.state_size, "n_groups": 1, "conv_kernel": 4}
        return c | model.keys
    c["intermediate_size"] = intermediate
    if model.model_type == "transformer":
        c |= {"num_heads": shape.hidden_size // shape.attention_head_dim}
    else:
        c |= {"num_heads": shape.hidden_size // shape.head_dim, "head_dim": shape.head_dim, "expand_v": 1}
    if model.attention_every:
        every = model.attention_every
        c["attn"] = {"layers": list(range(every - 1, shape.layers, every)),
                     "num_heads": shape.hidden_size // shape.attention_head_dim}
    return c | model.keys


def target_parameters(shape: Shape) -> int:
    return count(config_of(FAMILIES["mamba2"], shape))


def solved_config(model: Model, shape: Shape) -> dict:
    """The config whose parameters come closest to the size's; an error if they are not within TOLERANCE."""
    target = target_parameters(shape)
    config = config_of(model, shape, GRAIN)
    if model.model_type != "mamba2":
        least = count(config)
        grain = count(config_of(model, shape, 2 * GRAIN)) - least
        config = config_of(model, shape, GRAIN * (1 + max(0, round((target - least) / grain))))
    off = count(config) / target - 1
    if abs(off) > TOLERANCE:
        raise ValueError(f"{model.title} at width {shape.hidden_size}: {count(config):,} parameters, "
                         f"{off:+.1%} from the size's {target:,}; at most {TOLERANCE:.0%} is allowed")
    return config


@dataclass(frozen=True)
class Run:
    round: int  # earlier rounds first
    name: str  # unique; of its folder and its raw file
    model: str
    task: str  # "lm" or a synthetic task's name
    width: int
    seed: int
    config: dict
    training: Training
    data: str  # folder, relative to the repository

    @property
    def parameters(self) -> int:
        return count(self.config)

    def train_file(self, out: str, device: str) -> dict:
        """The file that mdn train reads: equal for all models of a task but for `model`, `seed` and `out`."""
        steps = self.training.steps
        return {
            "model": self.config,
            "data": self.data,
            "out": out,
            "rows": self.training.rows,
            "length": self.training.length,
            "accumulate": self.training.accumulate,
            "order": "packed" if self.task == "lm" else "documents",
            "max_steps": steps,
            "learning_rate": self.training.learning_rate,
            "beta1": 0.9,
            "beta2": 0.95,
            "weight_decay": 0.1,
            "clip": 1.0,
            "schedule": "cosine",
            "warmup_fraction": 0.05,
            "final_lr_fraction": 0.1,
            "seed": self.seed,
            "data_seed": self.seed,
            "device": device,
            "dtype": "float32" if device == "cpu" else "bfloat16",
            "eval_every": max(1, steps // 10),
            "eval_tokens": self.training.eval_tokens,
            "final_eval_tokens": self.training.eval_tokens,
            "log_every": max(1, steps // 200),
            "checkpoint_every": max(1, steps // self.training.checkpoints),
            "keep": 1,
        }


def synthetic_folder(task: Synthetic) -> str:
    return f"{task.name}-{task.training.length}-{sum(n for _, n in task.train)}"


def make_plan(size_name: str, corpus: str = "out/corpus", work: str = "out/comparison") -> list[Run]:
    """All runs of a size, the most telling first."""
    size = SIZES[size_name]
    runs = []
    seeds: dict[str, int] = {}
    for number, names in enumerate(size.language):
        place = number if number < SYNTHETIC_ROUND else number + 1
        for name in names:
            seed = seeds[name] = seeds.get(name, -1) + 1
            runs.append(Run(place, f"lm-{name}-s{seed}", name, "lm", size.shape.hidden_size, seed,
                            solved_config(MODELS[name], size.shape), size.training, f"{corpus}/{size.data}"))
    for task in size.synthetic:
        for shape in task.shapes:
            for name in task.models:
                runs.append(Run(SYNTHETIC_ROUND, f"{task.name}-{name}-d{shape.hidden_size}-s0", name, task.name,
                                shape.hidden_size, 0, solved_config(MODELS[name], shape), task.training,
                                f"{work}/{size_name}/data/{synthetic_folder(task)}"))
    rates = {"lm": size.rates, **{task.name: task.rates for task in size.synthetic}}
    for run in [run for run in runs if run.model in FAMILIES and run.seed == 0]:
        for rate in rates[run.task]:
            runs.append(replace(run, round=RATES_ROUND, name=run.name.removesuffix("s0") + f"r{rate:g}-s0",
                                training=replace(run.training, learning_rate=rate)))
    return sorted(runs, key=lambda run: run.round)


def kind_of(task: str, width: int, config: dict) -> tuple:
    """Runs of one kind take about the same time."""
    return (task, width, config["model_type"], config.get("momentum_kind", "heavy_ball"),
            config.get("use_momentum", True), "attn" in config)


def estimated_seconds(run: Run, size: Size, measured: dict[tuple, float]) -> float:
    """Of training, evaluating and starting both. `measured`: seconds by kind."""
    kind = kind_of(run.task, run.width, run.config)
    if kind in measured:
        return measured[kind]
    cost = ASSUMED_COST[run.config["model_type"]]
    if "attn" in run.config:
        cost = ASSUMED_HYBRID_COST
    if run.config.get("momentum_kind", "heavy_ball") != "heavy_ball":
        cost = ASSUMED_GENERAL_COST
    rate = size.assumed_rate * min(4, target_parameters(size.shape) / run.parameters) / cost
    return run.training.seen / rate * 1.05 + (15 if run.task == "lm" else 6)


def recipe_key(run: Run, device: str) -> str:
    """Equal for equal work: what a result is valid for."""
    return json.dumps(run.train_file("", device.partition(":")[0]), sort_keys=True)
