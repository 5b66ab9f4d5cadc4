"""Chat templates: what they write, and that exactly the answers and their end tokens count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftkit.errors import ModelError
from ftkit.tasks.base import RowError
from ftkit.tasks.parts.built_in_templates import BUILT_IN
from ftkit.tasks.parts.templates import ChatTemplate, find_template, read_template, template_file
from tests.tasks.parts.chat_tokenizers import byte_tokenizer

TALK = [
    {"role": "user", "content": "Two words?"},
    {"role": "assistant", "content": "Café crème."},
    {"role": "user", "content": "More\nof them"},
    {"role": "assistant", "content": "No, ☕ thanks!"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
UNMARKED = """
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
GOLDEN = {
    "alpaca": (
        "Be brief.\n\n### Instruction:\nTwo words?\n\n### Response:\nCafé crème.</s>\n\n### Instruction:\nMore\nof them\n\n### Response:\n"
        "No, ☕ thanks!</s>\n\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo words?<|im_end|>\n<|im_start|>assistant\nCafé crème.<|im_end|>\n"
        "<|im_start|>user\nMore\nof them<|im_end|>\n<|im_start|>assistant\nNo, ☕ thanks!<|im_end|>\n"
    ),
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nTwo words?<end_of_turn>\n<start_of_turn>model\nCafé crème.<end_of_turn>\n"
        "<start_of_turn>user\nMore\nof them<end_of_turn>\n<start_of_turn>model\nNo, ☕ thanks!<end_of_turn>\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTwo words?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nCafé crème.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "More\nof them<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nNo, ☕ thanks!<|eot_id|>"
    ),
    "none": "Be brief.Two words?Café crème.</s>More\nof themNo, ☕ thanks!</s>",
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nTwo words?</s>\n<|assistant|>\nCafé crème.</s>\n<|user|>\nMore\nof them</s>\n"
        "<|assistant|>\nNo, ☕ thanks!</s>\n"
    ),
}
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}


def counted(template: ChatTemplate, processor: Any, messages: Any, train_on: Any = "answers", tools: Any = None) -> list[str]:
    """The supervised text, one piece for each run of supervised tokens."""
    ids, marks = template.supervise([template.write(messages, tools, train_on)])[0]
    pieces: list[list[int]] = []
    for index, (token, mark) in enumerate(zip(ids, marks, strict=True)):
        if mark and (index == 0 or not marks[index - 1]):
            pieces.append([])
        if mark:
            pieces[-1].append(token)
    return [processor.decode(piece, clean_up_tokenization_spaces=False) for piece in pieces]


# --- the built-in ones ----------------------------------------------------------------------------------------------


def test_all_built_in_templates_have_a_golden_text() -> None:
    assert set(GOLDEN) == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_template_writes_the_golden_text(name: str) -> None:
    processor = byte_tokenizer()
    template = find_template(name, None, processor)
    assert template.write(SYSTEM, None, "answers").text == GOLDEN[name]
    before = GOLDEN[name][: GOLDEN[name].index("No, ☕")]
    assert template.prompt(SYSTEM[:-1], None) == before


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_answers_and_their_end_tokens_count_and_nothing_else(name: str, adds_bos: bool) -> None:
    processor = byte_tokenizer(adds_bos=adds_bos)
    template = find_template(name, None, processor)
    end = ENDS.get(name, "</s>")
    for messages in (TALK, SYSTEM):
        assert counted(template, processor, messages) == [f"Café crème.{end}", f"No, ☕ thanks!{end}"]
        assert counted(template, processor, messages, "last_answer") == [f"No, ☕ thanks!{end}"]
        assert counted(template, processor, messages, "all") == [template.write(messages, None, "all").text]
    assert template.end_id() == processor.convert_tokens_to_ids(end)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_prompt_is_the_beginning_of_what_is_trained_on(name: str) -> None:
    processor = byte_tokenizer(adds_bos=True)
    template = find_template(name, None, processor)
    ids, marks = template.supervise([template.write(TALK, None, "last_answer")])[0]
    prompt = template.tokens([template.prompt(TALK[:-1], None)])[0]
    assert ids[: len(prompt)] == prompt
    assert marks.index(1) == len(prompt)
    assert ids.count(processor.bos_token_id) == 1
    assert ids[0] == processor.bos_token_id


def test_no_beginning_token_where_the_tokenizer_puts_none() -> None:
    processor = byte_tokenizer()
    template = find_template("llama3", None, processor)
    assert processor.bos_token_id not in template.tokens([template.prompt(TALK[:1], None)])[0]


def test_alpaca_has_its_preamble_where_there_is_no_system_message() -> None:
    text = find_template("alpaca", None, byte_tokenizer()).prompt(TALK[:1], None)
    assert text.startswith("Below is an instruction that describes a task.")
    assert text.endswith("### Instruction:\nTwo words?\n\n### Response:\n")


def test_chatml_writes_tools_and_their_calls() -> None:
    processor = byte_tokenizer()
    template = find_template("chatml", None, processor)
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}, {"name": "add", "arguments": '{"a": 2}'}]
    messages = [
        SYSTEM[0],
        TALK[0],
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ]
    text = template.write(messages, tools, "answers").text
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert '<tools>\n{"name": "add", "parameters": {"type": "object"}}\n</tools>' in text
    assert "<|im_start|>tool\n3<|im_end|>\n" in text
    written = (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n'
    )
    assert counted(template, processor, messages, tools=tools) == [f"{written}</tool_call><|im_end|>", "Three.<|im_end|>"]


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"chatml"}))
def test_tools_are_refused_by_templates_without_a_place_for_them(name: str) -> None:
    template = find_template(name, None, byte_tokenizer())
    with pytest.raises(RowError, match="it has no place for tools"):
        template.write(TALK, [{"name": "add"}], "answers")
    with pytest.raises(RowError, match="it has no place for tool calls"):
        template.write([TALK[0], {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}], None, "answers")


def test_a_template_that_says_nothing_of_tools_would_leave_them_out() -> None:
    template = ChatTemplate(byte_tokenizer(), UNMARKED, "T")
    with pytest.raises(RowError, match="T does not write `tools`") as caught:
        template.write(TALK, [{"name": "add"}], "answers")
    assert caught.value.column == "tools"
    with pytest.raises(RowError, match="T does not write `tool_calls`"):
        template.write([TALK[0], {"role": "assistant", "content": "x", "tool_calls": [{"name": "add"}]}], None, "answers")


# --- where the answers are --------------------------------------------------------------------------------------------


def test_without_markers_answers_are_found_turn_by_turn() -> None:
    processor = byte_tokenizer(template=UNMARKED)
    template = find_template("auto", None, processor)
    assert template.name == "the tokenizer's own template"
    assert counted(template, processor, TALK) == ["Café crème.<|im_end|>", "No, ☕ thanks!<|im_end|>"]
    assert counted(template, processor, TALK, "last_answer") == ["No, ☕ thanks!<|im_end|>"]
    assert template.end_id() == processor.convert_tokens_to_ids("<|im_end|>")


def test_markers_around_the_text_alone_still_teach_the_end() -> None:
    processor = byte_tokenizer()
    inside, outside = "+ eos_token }}{% endgeneration %}", "}}{% endgeneration %}{{- eos_token }}"
    source = BUILT_IN["zephyr"].replace(inside, outside)
    assert source != BUILT_IN["zephyr"]
    assert counted(ChatTemplate(processor, source, "T"), processor, TALK) == ["Café crème.</s>", "No, ☕ thanks!</s>"]


def test_markers_in_two_parts_and_with_the_line_break_after_the_end() -> None:
    processor = byte_tokenizer()
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q ' + m.content + '\n' }}{% else %}{{ 'A ' }}{% generation %}{{ '(thinks) ' }}"
        "{% endgeneration %}{% generation %}{{ m.content + eos_token + '\n' }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A ' }}{% endif %}"
    )
    assert counted(ChatTemplate(processor, source, "T"), processor, TALK[:2]) == ["(thinks) Café crème.</s>"]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_both_ways_out() -> None:
    forgets = UNMARKED.replace("message.content +", "(message.content if loop.last or message.role == 'user' else '') +")
    processor = byte_tokenizer()
    template = ChatTemplate(processor, forgets, "T")
    with pytest.raises(RowError, match="T writes what comes before turn 2 in another way once the conversation goes on") as caught:
        template.write(TALK, None, "answers")
    assert "{% generation %}" in caught.value.hint
    assert "task.chat_template" in caught.value.hint
    assert "task.train_on" in caught.value.hint
    assert counted(template, processor, TALK, "last_answer") == ["No, ☕ thanks!<|im_end|>"]


def test_a_prompt_unlike_the_beginning_of_the_text_is_refused() -> None:
    for source in (UNMARKED, BUILT_IN["chatml"]):
        thinking = source.replace(
            "{{- '<|im_start|>assistant\n' }}{% endif %}", "{{- '<|im_start|>assistant\n<think>' }}{% endif %}"
        )
        thinking = thinking.replace(
            r"{{- '<|im_start|>assistant\n' }}{% endif %}", "{{- '<|im_start|>assistant\n<think>' }}{% endif %}"
        )
        assert thinking != source
        with pytest.raises(RowError, match="T begins the last answer in another way") as caught:
            ChatTemplate(byte_tokenizer(), thinking, "T").write(TALK, None, "last_answer")
        assert "add_generation_prompt" in caught.value.hint


def test_markers_that_mark_nothing_are_an_error_not_a_loss_of_zero() -> None:
    source = BUILT_IN["zephyr"].replace("message.role == 'assistant'", "message.role == 'bot'")
    with pytest.raises(RowError, match="T marks nothing of it as an answer") as caught:
        ChatTemplate(byte_tokenizer(), source, "T").write(TALK, None, "answers")
    assert "task.train_on" in caught.value.hint


def test_answers_without_an_end_token_are_refused() -> None:
    endless = UNMARKED.replace("'<|im_end|>\n'", "'\n'")
    template = ChatTemplate(byte_tokenizer(), endless, "T")
    with pytest.raises(ModelError, match="T writes no end token of this tokenizer after an answer: 'No, ☕ thanks!") as caught:
        template.supervise([template.write(TALK, None, "answers")])
    assert caught.value.problems[0].key == "task.chat_template"
    # The text is there, but this tokenizer reads it letter by letter.
    stranger = find_template("chatml", None, byte_tokenizer(controls=[]))
    with pytest.raises(ModelError, match="no end token"):
        stranger.end_id()


def test_an_answer_that_holds_the_end_token_is_refused() -> None:
    template = find_template("zephyr", None, byte_tokenizer())
    with pytest.raises(RowError, match="an answer holds '</s>', which ends it"):
        template.supervise([template.write([TALK[0], {"role": "assistant", "content": "a </s> b"}], None, "answers")])


# --- the seam ---------------------------------------------------------------------------------------------------------

SEAM = """
{%- for m in messages %}
{{- ('Q' if m.role == 'user' else 'A') + seam }}
{%- if m.role == 'user' %}{{- m.content + '\n' }}{% else %}{% generation %}{{- m.content + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'A' + seam }}{% endif %}"""


def with_seam(processor: Any, seam: str) -> ChatTemplate:
    return ChatTemplate(processor, f"{{% set seam = {seam!r} %}}" + SEAM, "T")


def test_a_token_of_prompt_and_answer_is_refused() -> None:
    processor = byte_tokenizer(merges=[(":", "P")], divides=False)
    template = with_seam(processor, ":")
    row = [TALK[0], {"role": "assistant", "content": "Paris"}]
    with pytest.raises(RowError, match="the tokenizer joins the end of the prompt with the answer: ':P'"):
        template.supervise([template.write(row, None, "answers")])
    assert counted(template, processor, [TALK[0], {"role": "assistant", "content": "Rome"}]) == ["Rome</s>"]


def test_white_space_of_the_prompt_may_come_with_the_answer() -> None:
    processor = byte_tokenizer(merges=[("Ġ", "P"), ("Ċ", "Ċ")], divides=False)
    row = [TALK[0], {"role": "assistant", "content": "Paris"}]
    assert counted(with_seam(processor, ": "), processor, row) == [" Paris</s>"]
    row = [TALK[0], {"role": "assistant", "content": "\nParis"}]
    assert counted(with_seam(processor, ":\n"), processor, row) == ["\n\nParis</s>"]


def test_a_token_of_two_characters_inside_the_answer_is_whole() -> None:
    processor = byte_tokenizer(merges=[("i", "s"), ("a", "r")])
    row = [TALK[0], {"role": "assistant", "content": "Paris \n is"}]
    assert counted(with_seam(processor, ":\n"), processor, row) == ["Paris \n is</s>"]


def test_tokens_that_read_otherwise_than_the_answer_are_refused() -> None:
    processor = byte_tokenizer()
    template = find_template("zephyr", None, processor)
    chat = template.write(TALK, None, "answers")

    class Forgetful:
        """Decodes without accents, as a tokenizer does that loses them."""

        def __getattr__(self, name: str) -> Any:
            return getattr(processor, name)

        def __call__(self, *texts: Any, **options: Any) -> Any:
            return processor(*texts, **options)

        def decode(self, ids: Any, **options: Any) -> str:
            return processor.decode(ids, **options).replace("é", "e")

    with pytest.raises(RowError, match=r"the tokens of an answer read 'Cafe crème\.</s>', not 'Café crème\.</s>'"):
        ChatTemplate(Forgetful(), template.source, "T").supervise([chat])


# --- beginnings and files ---------------------------------------------------------------------------------------------


def test_a_doubled_beginning_token_is_refused_and_a_single_one_is_not() -> None:
    processor = byte_tokenizer(adds_bos=True)
    once = ChatTemplate(processor, "{{ bos_token }}" + BUILT_IN["zephyr"], "T")
    ids = once.tokens([once.prompt(TALK[:1], None)])[0]
    assert ids[:2].count(processor.bos_token_id) == 1
    twice = ChatTemplate(processor, "{{ bos_token + bos_token }}" + BUILT_IN["zephyr"], "T")
    with pytest.raises(ModelError, match="T begins the text with '<s>' twice"):
        twice.tokens([twice.prompt(TALK[:1], None)])


def test_a_base_model_needs_a_template() -> None:
    with pytest.raises(ModelError, match="the tokenizer has no chat template") as caught:
        find_template("auto", None, byte_tokenizer())
    problem = caught.value.problems[0]
    assert problem.key == "task.chat_template"
    assert "alpaca, chatml, gemma, llama3, none, zephyr" in problem.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "T refuses the conversation: roles must alternate"),
        ("{{ messages[0].content + messages[0].nothing }}", "T refuses the conversation: 'dict object' has no attribute 'nothing'"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "T refuses the conversation: access to attribute '__class__'"),
        ("{% for i in range(10000000) %}{% endfor %}", "T refuses the conversation: Range too big"),
    ],
)
def test_a_template_that_fails_blames_the_row(source: str, message: str) -> None:
    with pytest.raises(RowError) as caught:
        ChatTemplate(byte_tokenizer(), source, "T").prompt(TALK[:1], None)
    assert message in caught.value.message


def test_files_are_told_from_names_and_read(tmp_path: Path) -> None:
    assert template_file("chatml") is None
    path = tmp_path / "own.jinja"
    path.write_text(BUILT_IN["chatml"], encoding="utf-8")
    assert template_file(str(path)) == path
    processor = byte_tokenizer()
    template = find_template(str(path), read_template(path), processor)
    assert template.name == "the template own.jinja"
    assert counted(template, processor, TALK[:2]) == ["Café crème.<|im_end|>"]


def test_a_file_that_is_no_template_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for message in messages %}\n{{ message.content }\n{% endfor %}", encoding="utf-8")
    with pytest.raises(ModelError, match="no Jinja template: ") as caught:
        read_template(path)
    assert caught.value.problems[0].place == f"{path}:2"
    with pytest.raises(ModelError, match=r"cannot be read: .*No such file"):
        read_template(tmp_path / "none.jinja")
    path.write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_template(path)
