"""Tiny models whose tokenizers have no fast version: Marian, M2M-100, ByT5, GPT-SW3, BERTweet. Shared by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from ftkit.models.processor import save_processor
from ftkit.models.quiet import quiet_libraries

quiet_libraries()

NOUNS = {"house": "Haus", "dog": "Hund", "tree": "Baum", "book": "Buch", "boat": "Boot", "letter": "Brief", "chair": "Stuhl"}
ADJECTIVES = {"old": "alte", "small": "kleine", "green": "grüne", "good": "gute", "heavy": "schwere"}
PAIRS = [
    {"source": f"the {adjective} {noun} is here.", "target": f"{other_adjective} {other_noun} ist hier."}
    for adjective, other_adjective in ADJECTIVES.items()
    for noun, other_noun in NOUNS.items()
]
"""Sentences in English and something like German: 35."""

SIZES = {
    "d_model": 16,
    "max_position_embeddings": 64,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
}


def train_pieces(texts: list[str], path: Path, size: int, **settings: Any) -> list[str]:
    """Trains a SentencePiece model, written to `path`; returns its pieces."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path.with_suffix("")),
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    path.with_suffix(".model").rename(path)
    path.with_suffix(".vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(index) for index in range(model.get_piece_size())]


def marian_tokenizer(folder: Path) -> Any:
    """Writes source.spm, target.spm and vocab.json; the tokenizer that they make."""
    folder.mkdir(parents=True, exist_ok=True)
    source = train_pieces([pair["source"] for pair in PAIRS], folder / "source.spm", 60)
    target = train_pieces([pair["target"] for pair in PAIRS], folder / "target.spm", 60)
    words = [piece for piece in dict.fromkeys([*source, *target]) if not piece.startswith("<")]
    vocabulary = {piece: index for index, piece in enumerate(["</s>", "<unk>", *words, ">>de<<", "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    files = {"source_spm": "source.spm", "target_spm": "target.spm", "vocab": "vocab.json"}
    return transformers.MarianTokenizer(
        **{name: str(folder / file) for name, file in files.items()}, source_lang="en", target_lang="de"
    )


def m2m_tokenizer(folder: Path) -> Any:
    """Writes vocab.json and sentencepiece.bpe.model; the tokenizer that they make."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = train_pieces([text for pair in PAIRS for text in pair.values()], folder / "sentencepiece.bpe.model", 80)
    words = [piece for piece in pieces if not piece.startswith("<")]
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    codes = transformers.models.m2m_100.tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]
    return transformers.M2M100Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "sentencepiece.bpe.model"),
        additional_special_tokens=[f"__{code}__" for code in codes],
    )


def byt5_tokenizer() -> Any:
    """Bytes; no vocabulary file."""
    return transformers.ByT5Tokenizer()


def sw3_tokenizer(folder: Path) -> Any:
    """A decoder's SentencePiece tokenizer without special tokens around texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text for pair in PAIRS for text in pair.values()]
    train_pieces(
        [*texts, "user assistant Question: Answer: <|im_start|> <|im_end|>"],
        folder / "spiece.model",
        120,
        pad_id=3,
        byte_fallback=False,
    )
    return transformers.GPTSw3Tokenizer(str(folder / "spiece.model"), name_or_path="tiny")


def bertweet_tokenizer(folder: Path) -> Any:
    """A tokenizer of words that keep their ends apart (`@@`), for encoders."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for pair in PAIRS for letter in pair["source"] if letter.isalpha()} | {"."})
    pieces = [*letters, *(f"{letter}@@" for letter in letters), "the", "house"]
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    merges = ["t h 1", "th e</w> 1", "h o 1", "u s 1", "us e</w> 1", "ho use</w> 1"]
    (folder / "bpe.codes").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return transformers.BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def _save(folder: Path, model: Any, tokenizer: Any) -> Path:
    # As initialized, tiny models write one token whatever the source says.
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2, generator=generator)
    model.save_pretrained(folder)
    save_processor(tokenizer, folder)
    return folder


def save_marian(folder: Path) -> Path:
    """A Marian model of one block on each side with its tokenizer's files; returns the folder."""
    tokenizer = marian_tokenizer(folder)
    config = transformers.MarianConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    return _save(folder, transformers.MarianMTModel(config), tokenizer)


def save_m2m(folder: Path) -> Path:
    """The same for M2M-100."""
    tokenizer = m2m_tokenizer(folder)
    config = transformers.M2M100Config(
        **SIZES, vocab_size=len(tokenizer) + 8, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2
    )
    return _save(folder, transformers.M2M100ForConditionalGeneration(config), tokenizer)


def save_byt5(folder: Path, auto_class: str = "T5ForConditionalGeneration") -> Path:
    """The same for ByT5."""
    config = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return _save(folder, getattr(transformers, auto_class)(config), byt5_tokenizer())


def save_sw3(folder: Path) -> Path:
    """A decoder (GPT-2) with GPT-SW3's tokenizer."""
    tokenizer = sw3_tokenizer(folder)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128)
    return _save(folder, transformers.GPT2LMHeadModel(config), tokenizer)


def save_bertweet(folder: Path, auto_class: str = "RobertaForSequenceClassification") -> Path:
    """An encoder (RoBERTa) with BERTweet's tokenizer."""
    tokenizer = bertweet_tokenizer(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(folder, getattr(transformers, auto_class)(config), tokenizer)
