"""A byte-level BPE tokenizer of the corpus's training texts, by the PyPI package tokenizers."""

from collections.abc import Iterable, Iterator
from pathlib import Path

END = "<|endoftext|>"
STRIDE = 4  # every fourth document is enough to count pairs


def thinned(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number % STRIDE == 0:
            yield text


def train(out: Path, name: str, vocab: int, texts: Iterable[str]) -> Path:
    """OUT/NAME.tokenizer.json, kept when it is there. GPT-2's way of cutting words. One special token is there
    for who wants to end documents with it; the comparison's shards do not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = out / f"{name}.tokenizer.json"
    if path.exists():
        return path
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(thinned(texts), trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise SystemExit(f"the texts give {tokenizer.get_vocab_size()} tokens, {vocab} were asked for")
    tokenizer.save(str(path))
    return path
