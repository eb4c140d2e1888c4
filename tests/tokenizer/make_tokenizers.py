"""Trains the small tokenizers of tests/data/tokenizers with the package `tokenizers`.

    .venv/bin/python tests/tokenizer/make_tokenizers.py

They have the structure that GPT-2's, Llama-3's and Qwen's tokenizer.json have (pattern, normaliser,
added tokens, template), at a vocabulary small enough for a repository. The text is Python's
standard library, whatever version runs this, and texts.py: a new run gives other merges, so run
make_expected.py after it.
"""

import json
import pathlib
import sysconfig

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers, trainers
from texts import all_texts

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "tokenizers"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus():
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse.py", "turtle.py", "typing.py", "tarfile.py", "pydoc_data/topics.py"):
        yield (folder / name).read_text(encoding="utf-8")
    for _ in range(20):
        yield from all_texts()


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def train(pre_tokenizer, vocab_size, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def write(name, tokenizer, config=None, legacy_merges=False):
    data = json.loads(tokenizer.to_str())
    if legacy_merges:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(name, tokenizer.get_vocab_size(), len(text))


def gpt2():
    tokenizer = train(byte_level(), 3000)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    write("gpt2", tokenizer,
          {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": None},
          legacy_merges=True)


def llama3():
    tokenizer = train(split(LLAMA3), 4000, ignore_merges=True)
    tokenizer.add_special_tokens(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eot_id|>"])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", bos)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                    template])
    # A word that merges alone never reach: ignore_merges must find it whole.
    data = json.loads(tokenizer.to_str())
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) != "Ġreturn"]
    write("llama3", Tokenizer.from_str(json.dumps(data)),
          {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>"}})


def qwen():
    tokenizer = train(split(QWEN), 3500)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False),
                          AddedToken("</tool_call>", normalized=False)])
    write("qwen", tokenizer, {"bos_token": None, "eos_token": "<|im_end|>"})


def options():
    """The options that the published files leave alone."""
    tokenizer = train(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4O), "removed", invert=True),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]), 2000)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.NFC()])
    tokenizer.add_tokens([
        AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True),
        AddedToken("[LR]", lstrip=True, rstrip=True), AddedToken("word", single_word=True),
        AddedToken("ﬁne"), AddedToken("<raw>", normalized=False), AddedToken("[L][R]"),
        AddedToken("été", single_word=True)])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")])
    write("options", tokenizer)


if __name__ == "__main__":
    gpt2()
    llama3()
    qwen()
    options()
