"""Chat templates: conversations as text, and which tokens of it are answers.

A template is Jinja, rendered by transformers in its sandbox, and its text is always encoded without further special tokens, so that
training and prediction see the same. Where a template marks answers with `{% generation %}`, the marks count. Elsewhere the
conversation is rendered turn by turn, and an answer is what its turn adds to the text; this only holds if each rendering is the
beginning of the next, which is checked. The text is tokenized as a whole, and the tokens of an answer are found by their characters
(see `ftkit.tasks.parts.answer_places`), up to and with the token that ends the turn.

A token across the beginning of an answer belongs to the answer if all that it has of the prompt is white space; otherwise the row is
refused, because at prediction, where the prompt stands alone, the model would not see what it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftkit.errors import ModelError, Problem
from ftkit.tasks.base import RowError
from ftkit.tasks.parts.answer_places import Places, Span, joined_with_prompt, tokenize_located
from ftkit.tasks.parts.built_in_templates import BUILT_IN
from ftkit.tasks.parts.chat import Message
from ftkit.tasks.parts.labels import shown
from ftkit.tasks.parts.tokens import gives_offsets

KEY = "task.chat_template"

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_EITHER_MARK = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

TrainOn = Literal["answers", "last_answer", "all"]


@dataclass(frozen=True)
class Chat:
    """A conversation as a template writes it.

    answers: where the answers are that count, each at least up to the token that ends it; None: all of the text counts.
    """

    text: str
    answers: list[Span] | None


def template_file(option: str) -> Path | None:
    """The file that the option `chat_template` names; None for names of templates. Files have an ending, names have none."""
    return Path(option) if Path(option).suffix else None


def read_template(path: Path) -> str:
    """The content of a template file. Raises ModelError if there is none, or no template in it."""
    import jinja2

    try:
        source = path.read_text(encoding="utf-8")
        # Only a check of the grammar, without the one tag that transformers adds.
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_EITHER_MARK.sub("", source))
    except (OSError, UnicodeDecodeError) as error:
        hint = "Paths start from the working folder, or from the recipe's"
        raise ModelError(Problem(message=f"the chat template {str(path)!r} cannot be read: {error}", key=KEY, hint=hint)) from None
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(Problem(message=f"no Jinja template: {error.message}", place=f"{path}:{error.lineno}", key=KEY)) from None
    return source


def find_template(option: str, file_text: str | None, processor: Any) -> ChatTemplate:
    """The template that the option `chat_template` asks for: `auto` (the tokenizer's own), a name, or a file with that text.

    Raises ModelError if the tokenizer has none of its own.
    """
    if file_text is not None:
        return ChatTemplate(processor, file_text, f"the template {Path(option).name}")
    if option != "auto":
        return ChatTemplate(processor, _beginning(processor) + BUILT_IN[option], f"the template {option!r}")
    if not processor.chat_template:
        message = "the tokenizer has no chat template, as is usual for a base model"
        hint = f"Name one: {', '.join(BUILT_IN)}, or a file; `none` puts prompt and answer one after the other"
        raise ModelError(Problem(message=message, key=KEY, hint=hint))
    return ChatTemplate(processor, processor.get_chat_template(), "the tokenizer's own template")


def _beginning(processor: Any) -> str:
    """Puts the beginning-of-text token where the tokenizer itself does, since templates are encoded without it."""
    ids = processor("a")["input_ids"]
    return "{{- bos_token }}" if ids and processor.bos_token_id is not None and ids[0] == processor.bos_token_id else ""


class ChatTemplate:
    """A template and the tokenizer it is used with.

    source: the Jinja text. name: what messages call it.
    """

    def __init__(self, processor: Any, source: str, name: str) -> None:
        self.source, self.name = source, name
        self._processor = processor
        self._marked = bool(_GENERATION.search(source))
        added = processor.added_tokens_decoder
        special = {*processor.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        self._ends = {*special - {processor.unk_token_id, processor.bos_token_id}, processor.eos_token_id}
        self._exact = gives_offsets(processor) and processor.backend_tokenizer.normalizer is None

    # --- text ----------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        """The conversation up to where the assistant begins to speak. Raises RowError if the template refuses it."""
        return self._render(messages, tools, prompt=True)[0]

    def write(self, messages: Sequence[Message], tools: Sequence[Any] | None, train_on: TrainOn) -> Chat:
        """The whole conversation and what counts of it. Raises RowError if the template refuses it, or the answers cannot be found."""
        text, marks = self._render(messages, tools)
        if train_on == "all":
            return Chat(text, None)
        last_only = train_on == "last_answer"
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = self.prompt(messages[: turns[-1]], tools)
        if not text.startswith(prompt):
            message = f"{self.name} begins the last answer in another way when it is there than when it is asked for"
            hint = "Correct a copy of it: what it adds under `add_generation_prompt` must be how it begins an answer"
            raise RowError("messages", message, hint)
        if not self._marked:
            return Chat(text, [self._turn(messages, tools, turn, text) for turn in (turns[-1:] if last_only else turns)])
        if last_only:
            marks = marks[len(self._render(messages[: turns[-1]], tools)[1]) :]
        spans = _joined([(start, end) for start, end in marks if text[start:end].strip()])
        if not spans:
            raise RowError("messages", f"{self.name} marks nothing of it as an answer", self._ways_out())
        return Chat(text, spans)

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, prompt: bool = False) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        self._check_tools(messages, tools)
        # Its annotation says that it returns a text.
        render: Any = render_jinja_template
        try:
            texts, marks = render(
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self.source,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=prompt,
                **self._processor.special_tokens_map,
            )
        except Exception as error:
            # Anything can go wrong in the templates of others, and the user must learn in which row.
            hint = "Correct the row, or use another template"
            raise RowError("messages", f"{self.name} refuses the conversation: {error}", hint) from None
        return texts[0], [(start, end) for start, end in marks[0]] if marks else []

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """What a template leaves out without a word would be missing in training."""
        for name, there in (("tools", bool(tools)), ("tool_calls", any(message.get("tool_calls") for message in messages))):
            if there and name not in self.source:
                hint = "Use one that does, such as `chat_template: chatml`, or remove them from the data"
                raise RowError("tools" if name == "tools" else "messages", f"{self.name} does not write `{name}`", hint)

    def _turn(self, messages: Sequence[Message], tools: Sequence[Any] | None, turn: int, text: str) -> Span:
        """Where a turn adds its answer. Only if what is before stays as it was, and what comes after leaves it as it is."""
        before = self.prompt(messages[:turn], tools)
        after = self._render(messages[: turn + 1], tools)[0]
        if not (after.startswith(before) and text.startswith(after)):
            raise self._moves(turn)
        if not text[len(before) : len(after)].strip():
            raise RowError("messages", f"{self.name} writes nothing for turn {turn + 1}, an answer", self._ways_out())
        return len(before), len(after)

    def _moves(self, turn: int) -> RowError:
        message = f"{self.name} writes what comes before turn {turn + 1} in another way once the conversation goes on"
        return RowError("messages", f"{message}, so that the answer cannot be found in the text", self._ways_out())

    def _ways_out(self) -> str:
        markers = "put {% generation %} and {% endgeneration %} around the answers in a copy of it and name that file"
        return f"Either {markers} as `{KEY}`, or set `task.train_on` to last_answer or all"

    # --- tokens --------------------------------------------------------------------------------------------------

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that this template wrote. Raises ModelError for two beginning-of-text tokens."""
        return [ids for ids, _ in self._tokenize(texts)]

    def supervise(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[int]]]:
        """(token ids, 1 for each that is of an answer) of conversations. Raises RowError if an answer cannot be told from the rest,
        ModelError if nothing ends it."""
        encoded = self._tokenize([chat.text for chat in chats])
        return [(ids, self._marks(chat, ids, places)) for chat, (ids, places) in zip(chats, encoded, strict=True)]

    def end_id(self) -> int:
        """The token that ends an answer. Raises RowError or ModelError as `write` and `supervise` do."""
        chat = self.write([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None, "last_answer")
        ids, marks = self.supervise([chat])[0]
        return ids[max(index for index, mark in enumerate(marks) if mark)]

    def _tokenize(self, texts: Sequence[str]) -> list[tuple[list[int], Places]]:
        encoded = tokenize_located(texts, self._processor)
        begin = self._processor.bos_token_id
        for ids, _ in encoded:
            if begin is not None and ids[:2] == [begin, begin]:
                message = f"{self.name} begins the text with {self._processor.bos_token!r} twice"
                raise ModelError(Problem(message=message, key=KEY, hint="Write it once, in a copy of the template"))
        return encoded

    def _marks(self, chat: Chat, ids: Sequence[int], places: Places) -> list[int]:
        if chat.answers is None:
            return [1] * len(ids)
        marks = [0] * len(ids)
        for span in chat.answers:
            first, last = self._tokens_of(chat.text, span, ids, places)
            marks[first : last + 1] = [1] * (last + 1 - first)
        return marks

    def _tokens_of(self, text: str, span: Span, ids: Sequence[int], places: Places) -> Span:
        """First and last token of an answer, the last being the one that ends it."""
        start, end = span
        shorter = start + len(text[start:end].rstrip())
        first, last = places.inside(start, shorter)
        if ids[last] not in self._ends:
            last = places.inside(start, end)[1] + 1
        if last >= len(ids) or ids[last] not in self._ends:
            hint = "Use one that ends answers with a special token of it; alpaca, none and zephyr take its eos_token"
            written = shown(text[start:end][-20:] + text[end : end + 20])
            message = f"{self.name} writes no end token of this tokenizer after an answer: {written}"
            raise ModelError(Problem(message=message, key=KEY, hint=hint))
        if ids[last] in ids[first:last]:
            token = self._processor.convert_ids_to_tokens(ids[last])
            raise RowError("messages", f"an answer holds {token!r}, which ends it", "Take it out of the text")
        begin, joined = places.characters(first)
        if text[min(begin, start) : start].strip():
            raise joined_with_prompt(text[begin:joined])
        if self._exact:
            self._check_decoded(text[min(begin, start) : places.characters(last)[1]], ids[first : last + 1])
        return first, last

    def _check_decoded(self, expected: str, ids: Sequence[int]) -> None:
        """Whether these tokens are the answer and its end; not where the tokenizer changes the text or does not know all of it."""
        if self._processor.unk_token_id in ids[:-1]:
            return
        decoded = self._processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "".join(decoded.split()) != "".join(expected.split()):
            message = f"the tokens of an answer read {shown(decoded)}, not {shown(expected)}"
            raise RowError("messages", message, "Use the tokenizer's own chat template, or another tokenizer")


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, those that touch made one: a template may mark parts of one answer."""
    found: list[Span] = []
    for start, end in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found
