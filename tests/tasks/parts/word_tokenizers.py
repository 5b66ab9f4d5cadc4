"""Tokenizers of the usual kinds that divide words into pieces, built in memory, and sentences that are hard on them."""

from __future__ import annotations

import random
from typing import Any

LETTERS = "abcdef"


def word_pieces() -> Any:
    """WordPiece where every letter is a piece; lower case, accents stripped, as BERT does it. Zero-width characters vanish."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<unk>", "<cls>", "<sep>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    backend = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(single="<cls> $A <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


def byte_level() -> Any:
    """Byte-level BPE without special tokens in the input, without `add_prefix_space` and without trimmed offsets, as GPT-2 has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["abc def abc fed abcdef"] * 3,
        trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def sentence_pieces() -> Any:
    """Unigram with `▁` before each word, which is a piece of its own before unusual words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁abc", -1.0), *((letter, -3.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(vocabulary, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


TOKENIZERS = {"word pieces": word_pieces, "byte level": byte_level, "sentence pieces": sentence_pieces}


def random_rows(count: int, scheme: str = "IOB2") -> list[dict[str, Any]]:
    """Sentences with long words, words of several pieces, punctuation and words that tokenizers drop."""
    generator = random.Random(0)
    rows = []
    for _ in range(count):
        words, tags = [], []
        while len(words) < 1 or generator.random() < 0.96:
            kind, size = generator.choice(["PER", "LOC", ""]), generator.randrange(1, 4)
            for index in range(size):
                length = generator.choice([1, 2, 3, 3, 4, 60])
                letters = "".join(generator.choice(LETTERS) for _ in range(length))
                words.append(generator.choice([letters, letters, letters, "abc", "\u200b", "don't", "é", "a b", "😂", ""]))
                prefix = "" if scheme == "none" else "I-" if index else "B-"
                tags.append(prefix + kind if kind else "O")
        rows.append({"tokens": words, "tags": tags})
    return rows
