"""What ftkit relies on in transformers: the calls, and what comes back."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.tokenization_python import PythonBackend
from transformers.utils.chat_template_utils import render_jinja_template
from transformers.utils.hub import cached_file

from tests.tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert") / "bert", "bert")


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, local_files_only=True, trust_remote_code=False, **options
    )


def test_from_pretrained_says_what_it_did_not_find(bert: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(bert, local_files_only=True, trust_remote_code=False)
    config.num_labels = 5
    model, info = load(bert, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    assert {entry[0] for entry in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert not set(info["missing_keys"]) - {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.shape == (5, 16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert not getattr(model, "_hf_peft_config_loaded", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_that_of_all_weights(dtype: torch.dtype, bert: Path) -> None:
    assert {parameter.dtype for parameter in load(bert, dtype=dtype)[0].parameters()} == {dtype}


def test_models_return_logits_and_losses_of_their_type(bert: Path) -> None:
    model, ids = load(bert)[0], torch.tensor([[2, 7, 3]])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1]))
    assert isinstance(found, ModelOutput)
    assert (found.logits.shape, found.logits.dtype, found.loss.shape) == ((1, 3), torch.float32, ())
    hidden = model.base_model(input_ids=ids, output_hidden_states=True)
    assert len(hidden.hidden_states) == 3
    assert hidden.last_hidden_state.shape == (1, 3, 16)


def test_a_model_saves_and_loads_as_the_same(bert: Path, tmp_path: Path) -> None:
    model = load(bert)[0]
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin")) == ["model.safetensors"]
    again = load(tmp_path)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_random_weights_follow_the_seed() -> None:
    one, two = tiny_model("bert", seed=3), tiny_model("bert", seed=3)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert "bert" in MODEL_MAPPING_NAMES


def test_attention_can_be_chosen(bert: Path) -> None:
    for name in ("eager", "sdpa"):
        assert load(bert, attn_implementation=name)[0].config._attn_implementation == name
    assert "sdpa" in transformers.AttentionInterface().valid_keys()


def test_generation_gives_prompt_and_answer() -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    ids = torch.tensor([[0, 4, 9], [4, 8, 9]])
    found = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        generation_config=transformers.GenerationConfig(max_new_tokens=4, do_sample=False),
    )
    assert found.dtype == torch.int64
    assert found.shape[0] == 2
    assert 4 <= found.shape[1] <= 7
    assert torch.equal(found[:, :3], ids)
    assert {"skip_prompt", "timeout"} <= set(inspect.signature(transformers.TextIteratorStreamer).parameters)


def test_an_encoder_and_a_decoder_make_a_pair() -> None:
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(tiny_config("bert"), tiny_config("bert"))
    assert (config.decoder.is_decoder, config.decoder.add_cross_attention, config.is_encoder_decoder) == (True, True, True)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    model = transformers.EncoderDecoderModel(config=config)
    found = model(input_ids=torch.tensor([[2, 7, 3]]), labels=torch.tensor([[7, 3]]))
    assert found.logits.shape == (1, 2, 64)


def test_tokenizers_give_ids_masks_and_offsets(tmp_path: Path) -> None:
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    found = tokenizer(["w1 w2", "w3"], ["w4", "w5"], return_offsets_mapping=True, return_special_tokens_mask=True, truncation=False)
    assert found["input_ids"][0] == tokenizer.convert_tokens_to_ids(["<cls>", "w1", "w2", "<sep>", "w4", "<sep>"])
    assert found["offset_mapping"][0][1:3] == [(0, 2), (3, 5)]
    assert found.sequence_ids(0) == [None, 0, 0, None, 1, None]
    assert found.word_ids(0) == [None, 0, 1, None, 0, None]
    assert isinstance(tokenizer.backend_tokenizer.to_str(), str)
    assert tokenizer.is_fast
    assert not isinstance(tokenizer, PythonBackend)
    assert {"pad_token", "unk_token"} <= set(tokenizer.special_tokens_map)
    padded = tokenizer.pad({"input_ids": [[1], [1, 2]]}, return_tensors="pt")
    assert padded["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_chat_templates_are_rendered_with_the_places_of_answers() -> None:
    render: Any = render_jinja_template
    answer = "{% generation %}{{ t.content }}{% endgeneration %}"
    template = "{% for t in messages %}{% if t.role == 'assistant' %}" + answer + "{% endif %}{% endfor %}"
    texts, marks = render(
        conversations=[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]],
        tools=None,
        chat_template=template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=False,
    )
    assert texts == ["bc"]
    assert [tuple(span) for span in marks[0]] == [(0, 2)]
    with pytest.raises(Exception, match=r"unsafe|undefined|no attribute"):
        render(conversations=[[]], tools=None, chat_template="{{ ''.__class__.__mro__ }}", return_assistant_tokens_mask=False)


def test_image_processors_of_pillow_give_pixels(tmp_path: Path) -> None:
    import numpy as np
    import PIL.Image

    save_tiny(tmp_path, "vit")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True, backend="pil")
    pixels = processor(
        images=PIL.Image.fromarray(np.zeros((9, 7), dtype=np.uint8)), do_rescale=False, do_normalize=False, return_tensors="pt"
    )
    assert pixels["pixel_values"].shape == (1, 1, 8, 8)


def test_a_cached_file_that_is_not_there_is_none() -> None:
    found = cached_file(
        "owner/nosuch", "config.json", local_files_only=True, _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    assert found is None


def test_configs_of_quantization_take_what_ftkit_gives() -> None:
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["classifier"],
    )  # fmt: skip
    assert four.load_in_4bit
    assert transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[]).load_in_8bit
    assert "dequantize" in inspect.signature(transformers.GgufConfig).parameters
