"""Writes tests/data/evaluate: questions in the public data sets' formats and what
lm-evaluation-harness makes of them.

Needs an environment of its own (once, the results are committed):
    pip install lm-eval==0.4.13 tokenizers
    python tests/evaluate/make_expected.py

The harness's own classes and task files give contexts, continuations, metrics and standard errors;
the log-likelihoods are made up here and stored beside them.
"""

import importlib.metadata
import json
import random
import re
from pathlib import Path

import lm_eval.api.metrics as metrics
import lm_eval.tasks
import lm_eval.utils as utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask, PerplexityTask
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "data" / "evaluate"
GPT2 = ROOT / "tests" / "data" / "tokenizers" / "gpt2" / "tokenizer.json"
BOOTSTRAPS = 100_000
ROUNDS = 6  # sets of answers to the same questions

HELLASWAG = [
    {
        "ind": 4,
        "activity_label": "Baking cookies",
        "ctx_a": "A woman puts a tray in the oven.",
        "ctx_b": "then She TAKES",
        "ctx": "unused",
        "endings": ["it out  again.", "[substeps] a nap [title] Rest.", "the oven.", "é café."],
        "label": "0",
    },
    {
        "ind": 9,
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to plant a tree [title] Choose a place. [step] It needs light.",
        "ctx_b": "",
        "ctx": "unused",
        "endings": [
            " [title] Dig a hole. [step] Deep.",
            "Water it [twice.",
            "Wait [a\nlong] time.",
            "The naïve gardener, the tree, and all of the rest of it stay.",
        ],
        "label": "3",
    },
    {
        "ind": 11,
        "activity_label": "Ice skating",
        "ctx_a": "",
        "ctx_b": "élan",
        "ctx": "unused",
        "endings": ["a", "bb", "ccc", "dddd dddd"],
        "label": "2",
    },
]
PIQA = [
    {"goal": "To open a jar", "sol1": "twist the lid.", "sol2": "hit the table.", "label": 0},
    {"goal": "Cool soup ", "sol1": "put it on the stove", "sol2": "wait", "label": 1},
    {"goal": "Säge", "sol1": "übermäßig viele Zähne", "sol2": "plain teeth on a saw", "label": 1},
]
ARC = [
    {
        "id": "a1",
        "question": "Which is a mammal?",
        "choices": {"text": ["trout", "whale", "crow", "frog"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "id": "a2",
        "question": "How many legs has a beetle?",
        "choices": {"text": ["four", "six", "eight"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    {
        "id": "a3",
        "question": "Ice melts at",
        "choices": {
            "text": ["100 °C", "0 °C", "-40 °C", "37 °C", "it does not melt"],
            "label": ["A", "B", "C", "D", "E"],
        },
        "answerKey": "B",
    },
]
OPENBOOKQA = [
    {
        "id": "o1",
        "question_stem": "A plant grows towards",
        "choices": {"text": ["light", "noise", "salt", "wind"], "label": ["A", "B", "C", "D"]},
        "answerKey": " A",
    },
    {
        "id": "o2",
        "question_stem": "Metal is a good conductor, so a pan ",
        "choices": {"text": ["warms", "sings", "floats", "grows"], "label": ["A", "B", "C", "D"]},
        "answerKey": "A",
    },
]
WINOGRANDE = [
    {
        "sentence": "The trophy did not fit the case because the _ was too large.",
        "option1": "trophy",
        "option2": "case",
        "answer": "1",
    },
    {
        "sentence": "Ann lent Bo a book, as _ reads a lot.",
        "option1": "Ann",
        "option2": "Bo",
        "answer": "2",
    },
    {"sentence": "_ is tall_ but Sue is not.", "option1": "Tom", "option2": "Sue", "answer": "1"},
]
BOOLQ = [
    {"question": "is ice cold", "passage": "Ice -- Ice is frozen water.", "idx": 0, "label": 1},
    {"question": "do fish fly", "passage": "Fish swim.\nSome jump.", "idx": 1, "label": 0},
    {"question": "is it late", "passage": "Nobody knows. ", "idx": 2, "label": 1},
]
SCIQ = [
    {
        "question": "What do cells divide by?",
        "distractor1": "osmosis",
        "distractor2": "erosion",
        "distractor3": "fusion",
        "correct_answer": "mitosis",
        "support": "\n Cells divide by mitosis.",
    },
    {
        "question": "Which gas do plants take in?",
        "distractor1": "neon",
        "distractor2": "argon",
        "distractor3": "helium",
        "correct_answer": "carbon dioxide",
        "support": "",
    },
]
LAMBADA = [
    {"text": "The old man looked at the sea and then at the boat"},
    {"text": "\"Where is it?\" she asked, and he pointed to the  cupboard"},
    {"text": "Über allen Gipfeln ist Ruh"},
    {"text": "one\ntwo\nthree four."},
]
# name, split that the harness evaluates on, documents
TASKS = [
    ("hellaswag", "validation", HELLASWAG),
    ("piqa", "validation", PIQA),
    ("arc_easy", "test", ARC),
    ("openbookqa", "test", OPENBOOKQA),
    ("winogrande", "validation", WINOGRANDE),
    ("boolq", "validation", BOOLQ),
    ("sciq", "test", SCIQ),
    ("lambada_openai", "test", LAMBADA),
]


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents))


def originals():
    """The same questions as the data sets' authors published them."""
    for name, documents in (("arc_easy", ARC), ("openbookqa", OPENBOOKQA)):
        stem = "question" if name == "arc_easy" else "question_stem"
        write_jsonl(
            OUT / f"{name}_original.jsonl",
            [
                {
                    "id": d["id"],
                    "question": {
                        "stem": d[stem],
                        "choices": [
                            {"text": t, "label": n}
                            for t, n in zip(d["choices"]["text"], d["choices"]["label"])
                        ],
                    },
                    "answerKey": d["answerKey"],
                }
                for d in documents
            ],
        )
    write_jsonl(
        OUT / "boolq_original.jsonl",
        [
            {"question": d["question"], "title": "", "answer": d["label"] == 1}
            | {"passage": d["passage"]}
            for d in BOOLQ
        ],
    )
    write_jsonl(OUT / "piqa_original.jsonl", [{k: d[k] for k in d if k != "label"} for d in PIQA])
    (OUT / "piqa_labels.lst").write_text("".join(f"{d['label']}\n" for d in PIQA))
    write_jsonl(
        OUT / "hellaswag_original.jsonl", [d | {"label": int(d["label"])} for d in HELLASWAG]
    )


def harness_task(name, split, path):
    found = list(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"))
    yaml = next(
        p for p in found if re.search(rf"^task: {name}$", p.read_text(), flags=re.MULTILINE)
    )
    config = load_yaml(yaml, resolve_func=True)
    for key in ("tag", "task_list", "dataset_name"):
        config.pop(key, None)
    for key in ("training_split", "validation_split", "test_split"):
        config[key] = None
    config["test_split"] = split
    config["dataset_path"] = "json"
    config["dataset_kwargs"] = {"data_files": {split: str(path)}}
    if any(m["metric"] == "acc_norm" for m in config["metric_list"]):
        config["metric_list"] = config["metric_list"] + [
            {"metric": "acc_bytes", "aggregation": "mean", "higher_is_better": True}
        ]
    return ConfigurableTask(config=config)


def made_up(rnd, continuation):
    """A log-likelihood near one nat a character, so that the normalisations disagree at times."""
    return -rnd.uniform(0.5, 1.5) * len(continuation), rnd.random() < 0.5


def questions(name, split, documents):
    ours = "lambada" if name.startswith("lambada") else name
    path = OUT / f"{ours}.jsonl"
    write_jsonl(path, documents)
    task = harness_task(name, split, path)
    rnd = random.Random(name)
    requests = []
    for doc in task.eval_docs:
        made = task.construct_requests(doc, task.fewshot_context(doc, 0))
        requests.append([list(r.args) for r in (made if isinstance(made, list) else [made])])
    rounds = []
    for _ in range(ROUNDS):
        answers = [[made_up(rnd, continuation) for _, continuation in r] for r in requests]
        collected = {}
        for doc, answer in zip(task.eval_docs, answers):
            for metric, value in task.process_results(doc, answer).items():
                collected.setdefault(metric, []).append(value)
        values = {}
        for metric, items in collected.items():
            aggregate = task.aggregation()[metric]
            error = metrics.stderr_for_metric(aggregate, BOOTSTRAPS)
            values[metric] = {"value": aggregate(items), "stderr": error(items)}
        rounds.append({"answers": answers, "metrics": values})
    return {"requests": requests, "rounds": rounds}


class Recorder(TemplateLM):
    """Keeps what the harness would give the model."""

    def __init__(self):
        super().__init__()
        self.tokenizer_file = Tokenizer.from_file(str(GPT2))
        self.pairs = []

    @property
    def eot_token_id(self):
        return self.tokenizer_file.token_to_id("<|endoftext|>")

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.tokenizer_file.encode(string, add_special_tokens=False).ids

    def _loglikelihood_tokens(self, requests, **kwargs):
        self.pairs = [[context, continuation] for _, context, continuation in requests]
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def encoded_pairs():
    texts = [
        ("Question: why?\nAnswer:", " because"),
        ("ends with spaces  ", "word"),
        ("ends with a line\n", " indented"),
        ("no-break space\u00a0", "next"),
        ("", " alone"),
        ("", "<|endoftext|>alone"),
        ("The answer is 4", "2"),
        ("Übermut tut", " selten gut"),
    ]
    model = Recorder()
    model.loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)], disable_tqdm=True
    )
    return [
        {"context": c, "continuation": t, "context_ids": e[0], "continuation_ids": e[1]}
        for (c, t), e in zip(texts, model.pairs)
    ]


def windows():
    cases = []
    for count, window, context in [
        (1, 4, 1), (3, 4, 1), (4, 4, 1), (5, 4, 1), (8, 4, 1), (11, 4, 1),
        (11, 4, 3), (12, 4, 4), (10, 6, 4), (7, 1, 1), (0, 4, 1),
    ]:  # fmt: skip
        tokens = list(range(10, 10 + count))
        raw = list(utils.get_rolling_token_windows(tokens, 9, window, context))
        disjoint = [utils.make_disjoint_window(w) for w in raw]
        cases.append(
            {
                "tokens": count,
                "window": window,
                "stride": window - context + 1,
                "disjoint": [[list(a), list(b)] for a, b in disjoint],
            }
        )
    return cases


def rolling():
    documents = ["one two  three\n", "", " é\u2003x\x1cy", "a\u200bb c\u00a0d", "日本 語\r\n\r\nend"]
    rnd = random.Random(5)
    lls = [-rnd.uniform(1, 40) for _ in documents]
    words = [PerplexityTask.count_words(d) for d in documents]
    sizes = [PerplexityTask.count_bytes(d) for d in documents]
    return {
        "documents": documents,
        "log_likelihoods": lls,
        "words": words,
        "bytes": sizes,
        "word_perplexity": metrics.weighted_perplexity(list(zip(lls, words))),
        "byte_perplexity": metrics.weighted_perplexity(list(zip(lls, sizes))),
        "bits_per_byte": metrics.bits_per_byte(list(zip(lls, sizes))),
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    originals()
    expected = {
        "harness": importlib.metadata.version("lm-eval"),
        "tasks": {
            ("lambada" if name.startswith("lambada") else name): questions(name, split, documents)
            for name, split, documents in TASKS
        },
        "pairs": encoded_pairs(),
        "windows": windows(),
        "rolling": rolling(),
        "capitalize": [
            [text, text.capitalize()]
            for text in ("", "then She TAKES", "élan VITAL", "ǆungla", "ÀÉÎ", "1st Place", "日本 Go")
        ],
    }
    (OUT / "expected.json").write_text(
        json.dumps(expected, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


if __name__ == "__main__":
    main()
