"""docs/results/comparison.md and its pictures, from the raw records alone."""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from .plan import ABLATIONS, FAMILIES, HYBRIDS, MODELS, SIZES, make_plan
from .runner import RECORD_FORMAT, RECORD_VERSION
from .svg import line_plot

SMOOTH = 0.3  # of a training curve: weight of the new point
SUMMARY = "summary.md"


def read_records(folder: Path) -> list[dict]:
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if (record.get("format"), record.get("version")) != (RECORD_FORMAT, RECORD_VERSION):
            raise SystemExit(f"{path}: is no {RECORD_FORMAT} of version {RECORD_VERSION}")
        records.append(record)
    return records


def spread(values: list[float], digits: int = 3, scale: float = 1) -> str:
    """The mean, and the smallest and largest of several seeds."""
    values = [value * scale for value in values if value is not None]
    if not values:
        return "—"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    align = "|".join("---" if i == 0 else "---:" for i in range(len(header)))
    return ["| " + " | ".join(header) + " |", f"|{align}|"] + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def settings_of(record: dict, name: str) -> list[dict]:
    """The evaluation's results of a task."""
    return [result for result in record.get("eval", {}).get("results", []) if task_name(result) == name]


def task_name(result: dict) -> str:
    return result["task"].partition(":")[0]


def metric(result: dict, name: str) -> float:
    return result["metrics"][name]["value"]


def loss_at(record: dict, window: int, key: str) -> float | None:
    """Nats a token of a perplexity over `data` or a `file`, in windows of so many tokens."""
    result = perplexity_at(record, window, key)
    return math.log(metric(result, "token_perplexity")) if result else None


def perplexity_at(record: dict, window: int, key: str) -> dict | None:
    for result in settings_of(record, "perplexity"):
        if result["settings"]["window"] == window and key in result["settings"]:
            return result
    return None


def bits_a_byte(record: dict, window: int) -> float | None:
    result = perplexity_at(record, window, "data")
    return metric(result, "bits_per_byte") if result else None


def grouped(records: list[dict], key: Callable[[dict], object]) -> dict:
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def ordered(names) -> list[str]:
    return [name for name in MODELS if name in names]


def language_rows(records: list[dict], names: list[str], length: int) -> list[list[str]]:
    groups = grouped(records, lambda r: r["model"])
    rows = []
    for name in names:
        group = groups.get(name, [])
        done = [r for r in group if r["status"] == "done"]
        if not group:
            continue
        if not done:
            rows.append([MODELS[name].title, f"{group[0]['parameters']:,}", "0 (failed)"] + ["—"] * 7)
            continue
        failed = len(group) - len(done)
        memory = [r["peak_memory_bytes"] for r in done if r["peak_memory_bytes"]]
        seeds = str(len(done)) + (f" (and {failed} failed)" if failed else "")
        rows.append([
            MODELS[name].title, f"{done[0]['parameters']:,}", seeds,
            spread([loss_at(r, length, "data") for r in done]),
            spread([loss_at(r, 4 * length, "data") for r in done]),
            spread([loss_at(r, length, "file") for r in done]),
            spread([loss_at(r, 4 * length, "file") for r in done]),
            spread([bits_a_byte(r, length) for r in done]),
            f"{sum(r['train']['tokens_per_second'] for r in done) / len(done):,.0f}",
            f"{max(memory) / 2**30:.2f}" if memory else "—",
        ])
    return rows


def largest_spread(records: list[dict], length: int) -> float | None:
    """The largest distance between the losses of two seeds of one model."""
    groups = grouped([r for r in records if r["status"] == "done"], lambda r: r["model"]).values()
    losses = [[loss_at(r, length, "data") for r in group] for group in groups if len(group) > 1]
    return max((max(x) - min(x) for x in losses), default=None)


def difference_rows(records: list[dict], reference: str, length: int, beyond: float) -> list[list[str]]:
    """Losses less the reference's of the same seed, which saw the same rows in the same order."""
    groups = grouped([r for r in records if r["status"] == "done"], lambda r: r["model"])
    own = {r["seed"]: r for r in groups.get(reference, [])}
    rows = []
    for name in ordered(groups):
        pairs = [(r, own[r["seed"]]) for r in groups[name] if r["seed"] in own]
        if name == reference or not pairs:
            continue
        near, far = ([loss_at(r, window, "data") - loss_at(o, window, "data") for r, o in pairs]
                     for window in (length, 4 * length))
        mean = sum(near) / len(near)
        verdict = "no" if abs(mean) <= beyond else "better" if mean < 0 else "worse"
        rows.append([MODELS[name].title, str(len(pairs)), signed(near), signed(far), verdict])
    return rows


def signed(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):+.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):+.3f} to {max(values):+.3f})"


def accuracy_table(records: list[dict], label: Callable[[dict], str], column: Callable[[dict], str],
                   names: set[str]) -> list[str]:
    """Accuracies in percent: a row a model (and width), a column a setting."""
    cells: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    columns: dict[str, None] = {}
    rows: dict[tuple[str, str], int] = {}  # and their widths
    for record in records:
        for result in record.get("eval", {}).get("results", []):
            if task_name(result) in names:
                columns[column(result)] = None
                rows[record["model"], label(record)] = record["width"]
                cells[record["model"], label(record), column(result)].append(metric(result, "acc"))
    order = sorted(rows, key=lambda row: (rows[row], list(MODELS).index(row[0])))
    return table(
        ["model", *columns],
        [[f"{MODELS[model].title}{suffix}", *(spread(cells[model, suffix, c], 1, 100) for c in columns)]
         for model, suffix in order],
    )


def rate_of(record: dict) -> float:
    return record["train_file"]["learning_rate"]


def rate_rows(records: list[dict], length: int) -> list[str]:
    """A table of losses, a row a model and a column a learning rate; nothing of models that have but one."""
    rates = sorted({rate_of(r) for r in records})
    groups = grouped(records, lambda r: r["model"])
    rows = []
    for name in ordered(groups):
        by_rate = {rate_of(r): r for r in groups[name]}
        if len(by_rate) > 1:
            cells = ["—" if rate not in by_rate else "failed" if by_rate[rate]["status"] != "done"
                     else f"{loss_at(by_rate[rate], length, 'data'):.3f}" for rate in rates]
            rows.append([MODELS[name].title, *cells])
    return table(["model", *(f"{rate:g}" for rate in rates)], rows) if rows else []


def best_rates(records: list[dict]) -> list[dict]:
    """Of each model and width the record with the best mean accuracy."""
    def mean(record: dict) -> float:
        values = [metric(result, "acc") for result in settings_of(record, record["task"])]
        return sum(values) / len(values)
    return [max(group, key=mean) for group in grouped(records, lambda r: (r["model"], r["width"])).values()]


def curve(record: dict) -> list[tuple[float, float]]:
    """The training losses, smoothed."""
    points, mean = [], None
    for tokens, loss in record["train"]["train_curve"]:
        if loss is None:
            continue
        mean = loss if mean is None else mean + SMOOTH * (loss - mean)
        points.append((tokens, mean))
    return points


def mean_curve(records: list[dict]) -> list[tuple[float, float]]:
    """Over seeds, which have the same steps."""
    curves = [curve(record) for record in records]
    return [(points[0][0], sum(y for _, y in points) / len(points)) for points in zip(*curves)]


def pictures(language: list[dict], folder: Path, title: str) -> list[str]:
    lines = []
    groups = grouped([r for r in language if r.get("train", {}).get("train_curve")], lambda r: r["model"])
    for name, models, what in (("curves", FAMILIES, "The six architectures"),
                               ("ablations", {"mdn": None, **ABLATIONS}, "MDN taken apart")):
        drawn = [(MODELS[m].title, mean_curve(groups[m])) for m in models if m in groups]
        drawn = [(label, points) for label, points in drawn if points]
        if len(drawn) > 1:
            picture = line_plot(f"{what}: {title}", "tokens", "training loss, nats a token (smoothed)", drawn)
            (folder / f"{name}.svg").write_text(picture)
            lines += [f"![{what}: training curves]({folder.name}/{name}.svg)", ""]
    return lines


def write_report(size_name: str, raw: Path, page: Path) -> None:
    records = read_records(raw)
    if not records:
        raise SystemExit(f"{raw}: holds no records; experiments.compare makes them")
    size = SIZES[size_name]
    length = size.training.length
    usual = {"lm": size.training.learning_rate, **{t.name: t.training.learning_rate for t in size.synthetic}}
    at_any_rate, records = records, [r for r in records if rate_of(r) == usual[r["task"]]]
    language = [r for r in records if r["task"] == "lm"]
    hardware = sorted({r["hardware"] for r in records})
    training = size.training
    text = [
        "# The architectures compared", "",
        f"Written by `python3 -m experiments.compare --size {size_name}` from `{page.stem}/raw`; only the part",
        f"\"What it shows\" is typed, in `{page.stem}/{SUMMARY}`. Hardware: {'; '.join(hardware)}. Of several seeds a",
        "cell gives the mean and, in brackets, the smallest and the largest.", "",
    ]
    summary = page.parent / page.stem / SUMMARY
    if summary.exists():
        text += ["## What it shows", "", summary.read_text().strip(), ""]
    if language:
        dtypes = sorted({r["eval"]["dtype"] for r in language if "eval" in r})
        header = ["model", "parameters", "seeds", f"loss at {length}", f"loss at {4 * length}",
                  f"long documents at {length}", f"long documents at {4 * length}", "bits a byte", "tokens/s",
                  "memory, GiB"]
        text += [
            "## Language modelling", "",
            f"{training.seen:,} tokens in {training.steps:,} steps of {training.rows * training.accumulate} rows of "
            f"{training.length}, data `{size.data}` ({'docs/results/corpus.md'}); AdamW, {training.learning_rate:g} "
            "with warm-up over 5% and cosine to a tenth, betas 0.9 and 0.95, weight decay 0.1, clipping 1; the same "
            "rows in the same order for all models of a seed. Losses are nats a token over the whole held-out split "
            f"in windows of so many tokens, computed in {' and '.join(dtypes)}; long documents are those of 16 KiB and "
            "more. tokens/s is the median over the run's training steps, each run alone on its device; memory is the "
            "most that training held.", "",
            *table(header, language_rows(language, ordered(FAMILIES), length)),
            *pictures(language, page.parent / page.stem, f"{training.seen / 1e6:g}M tokens"),
        ]
        for title, models in (("Ablations and extensions of MDN", ["mdn", *ABLATIONS]), ("Hybrids", list(HYBRIDS))):
            rows = language_rows(language, [m for m in models], length)
            if len(rows) > (1 if "mdn" in models else 0):
                text += [f"### {title}", "", *table(header, rows)]
        beyond = largest_spread(language, length)
        rows = difference_rows(language, "mdn", length, beyond) if beyond is not None else []
        if rows:
            text += ["### Differences from MDN", "",
                     f"Loss less that of MDN with the same seed, so with the same rows in the same order: below 0 is "
                     f"better than MDN. Two seeds of one model differ by up to {beyond:.3f}; a mean within that is no "
                     "difference that these runs can show.", "",
                     *table(["model", "seeds", f"at {length}", f"at {4 * length}", "beyond the seeds' spread"], rows)]
        rows = rate_rows([r for r in at_any_rate if r["task"] == "lm" and r["seed"] == 0], length)
        if rows:
            text += ["### Learning rates", "",
                     f"The loss at {length} of seed 0 by learning rate; everything else is as above.", "", *rows]
    recall = [r for r in records if r["task"] == "mqar" and r["status"] == "done"]
    if recall:
        text += ["## Multi-query associative recall", "",
                 "Accuracy in percent by key-value pairs / length. One model a width is trained on a mixture of "
                 "settings and evaluated on each.", "",
                 *accuracy_table(recall, lambda r: f", width {r['width']:03d}",
                                 lambda x: f"{x['settings']['pairs']} / {x['settings']['length']}", {"mqar"})]
        chosen = best_rates([r for r in at_any_rate if r["task"] == "mqar" and r["status"] == "done"])
        if any(rate_of(r) != usual["mqar"] for r in chosen):
            text += ["The same with the learning rate, of those run, at which a model's mean over the settings is best:", "",
                     *accuracy_table(chosen, lambda r: f", width {r['width']:03d}, rate {rate_of(r):g}",
                                     lambda x: f"{x['settings']['pairs']} / {x['settings']['length']}", {"mqar"})]
    tracking = [r for r in records if r["task"] in ("parity", "s3", "s5") and r["status"] == "done"]
    if tracking:
        text += ["## State tracking", "",
                 "Accuracy in percent over all positions, by task / length; the first length of a task is that of "
                 "training. Guessing gives 50 in parity, 17 in S3 and 1 in S5.", "",
                 *accuracy_table(tracking, lambda r: "", lambda x: f"{task_name(x)} / {x['settings']['length']}",
                                 {"parity", "s3", "s5"})]
    if any(settings_of(r, "niah_single_1") for r in language):
        text += ["## Needles", "",
                 "Answers given exactly, in percent, of the language models, by task / length in tokens; they were "
                 f"trained on rows of {length}.", "",
                 *accuracy_table(language, lambda r: "", lambda x: f"{task_name(x)} / {x['settings']['length']}",
                                 {"niah_single_1", "niah_single_2"})]
    records = at_any_rate
    present = {r["name"] for r in records}
    missing = [run.name for run in make_plan(size_name) if run.name not in present]
    failed = [f"`{r['name']}`: {r['error']}" for r in records if r["status"] != "done"]
    text += ["## What is missing", ""]
    text += [f"- failed: {line}" for line in failed]
    text += [f"- not run: {', '.join(f'`{name}`' for name in missing)}"] if missing else []
    text += [] if failed or missing else ["Nothing: every run of the plan is here."]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(text).rstrip() + "\n")
