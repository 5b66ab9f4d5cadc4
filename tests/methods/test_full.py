from __future__ import annotations

from ftkit.methods.full import Full
from ftkit.models.layout import ModelLayout
from tests.tiny import tiny_config


def test_position_tables_that_hold_a_formula_stay() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, MarianConfig, MarianMTModel

    sizes = {"vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    model = MarianMTModel(MarianConfig(**sizes, **heads, max_position_embeddings=16, decoder_start_token_id=0))
    layout = ModelLayout(model)
    method = Full(Full.Options())
    method.apply(model, layout)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}
    assert not any(method.declares(name, layout) for name in frozen)
    learned = DistilBertForSequenceClassification(DistilBertConfig(**tiny_config("distilbert").to_dict()))
    method.apply(learned, ModelLayout(learned))
    assert all(parameter.requires_grad for parameter in learned.parameters())
