"""Instruction tuning: a decoder learns to answer in conversations (supervised fine-tuning, SFT).

{"messages": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}]}

Other layouts: see `ftkit.tasks.parts.chat`. How a conversation becomes text: see `ftkit.tasks.parts.templates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ftkit.errors import DataError, ModelError, Problem
from ftkit.methods.base import Default
from ftkit.metrics import generated_text, language_modeling
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, RowError, Rows
from ftkit.tasks.parts.answer_match import AnswerMatch, one_group
from ftkit.tasks.parts.built_in_templates import BUILT_IN
from ftkit.tasks.parts.chat import Conversation, Layout, chat_columns, layout_of, read_conversation
from ftkit.tasks.parts.chat_columns import recognize_chat
from ftkit.tasks.parts.chat_features import encode_conversations, next_tokens, shown_answers
from ftkit.tasks.parts.dialogue import ChatDialogue
from ftkit.tasks.parts.generation import GenerationOptions
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.metric_choice import MetricChoice, finite
from ftkit.tasks.parts.profiles import Profile, Recognized
from ftkit.tasks.parts.templates import ChatTemplate, TrainOn, find_template, read_template, template_file
from ftkit.tasks.parts.texts import pad_inputs, spread
from ftkit.tasks.parts.written_text import WritesText

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import nn

    from ftkit.models.facts import ModelFacts

_LONGEST = 2048
_ROWS_AT_A_TIME = 500
_SHOWN_EXAMPLES = 5
_SHOWN_CHARACTERS = 300
_OF_TOKENS = {name: language_modeling.METRICS[name] for name in ("perplexity", "token_accuracy")}
_GENERATED = {*generated_text.METRICS, AnswerMatch.name}
"""Metrics of generated answers."""


class Options(Strict):
    """Options of instruction tuning."""

    layout: Layout | Auto = Field("auto", description="How rows hold conversations. auto: by the columns that they have.")
    chat_template: str = Field(
        "auto",
        min_length=1,
        description="What makes text of a conversation: a name (alpaca, chatml, gemma, llama3, none, zephyr) or a .jinja file. "
        "auto: the tokenizer's own. none: contents one after the other.",
    )
    system: Annotated[str, Field(min_length=1)] | None = Field(None, description="System message for rows that have none.")
    train_on: TrainOn = Field("answers", description="Which tokens count: those of all answers, of the last one, or all.")
    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto", description="Tokens of a conversation; what is longer is cut at the end. auto: what the model takes, at most 2048."
    )
    on_empty_target: Literal["drop", "error"] = Field(
        "drop", description="When `max_length` leaves nothing of the answers: leave the row out of training and say so, or stop."
    )
    answer_pattern: Annotated[str, AfterValidator(one_group)] | None = Field(
        None,
        description="Regular expression with one group; `answer_match` compares the last match in both answers: `#### (\\S+)`.",
    )
    generation: GenerationOptions = Field(
        default_factory=GenerationOptions,
        description="How answers are generated. max_new_tokens auto: what the longest answer at the end of a training row takes.",
    )
    metrics: Annotated[list[str], Field(min_length=1)] | Auto = Field(
        "auto",
        description="Metrics to report, the one that picks the best checkpoint first. auto: loss, perplexity, token_accuracy, and "
        "answer_match where there is an `answer_pattern`. Those of generated text take time: rougeL, chrf, exact_match ...",
    )


class InstructionTuning(WritesText):
    """Supervised fine-tuning on conversations: the loss is that of the answers' tokens, each with the token that ends its turn.

    Rows are read in four layouts. Where the recipe names none, each row's columns decide. A conversation to predict ends with a turn
    of the user; of one that ends with an answer, that answer is generated anew.

    Best checkpoint by loss: it is cheap, and the least noisy of all metrics on small validation splits.
    """

    name = "instruction-tuning"
    summary = "Answers in conversations (chat, SFT), by a decoder."
    model_kinds = frozenset({"decoder"})
    pretrained_head = True
    pipeline_tag = "text-generation"
    asks_in_turns = True
    own_metrics = (AnswerMatch(None).spec(),)
    Options = Options
    path_options = frozenset({"chat_template"})

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """A column or columns of one of the layouts. Raises DataError for pairs of a chosen and a rejected answer."""
        return recognize_chat(data, lambda layout: cls(Options(layout=layout)))

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self.left_out = "no token of an answer is within task.max_length"
        self._layouts: list[Layout] = []
        self._template_text: str | None = None
        self._longest_answer = 0
        self._positions: int | None = None
        self._stop_ids: list[int] = []
        self._matching = AnswerMatch(self.options.answer_pattern)
        self._chosen: list[str] = self._auto_metrics() if self.options.metrics == "auto" else self.options.metrics
        self._metrics = MetricChoice(
            {**_OF_TOKENS, **generated_text.METRICS, AnswerMatch.name: self._matching.spec()}, self._chosen
        )

    def _auto_metrics(self) -> list[str]:
        return ["loss", "perplexity", "token_accuracy", *([AnswerMatch.name] if self.options.answer_pattern else [])]

    @property
    def _layout(self) -> Layout | None:
        return None if self.options.layout == "auto" else self.options.layout

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Those of the layout; where the recipe names none, of all layouts, required only once it is learned which one it is."""
        return chat_columns(self._layout, self._layouts)

    def check_options(self) -> str:
        """Unknown templates and metrics, and options without effect."""
        options, found = self.options, self._metrics.problems()
        template = options.chat_template
        if template != "auto" and template not in BUILT_IN and template_file(template) is None:
            near = get_close_matches(template, BUILT_IN, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: auto, {', '.join(BUILT_IN)}, or a file (`chat.jinja`)"
            found.append(f"chat_template: there is no template {template!r}; {advice}")
        matching = AnswerMatch.name in self._chosen
        if matching and options.answer_pattern is None:
            found.append("metrics: answer_match needs an answer_pattern")
        if options.answer_pattern is not None and not matching:
            found.append("answer_pattern: only answer_match uses it, which is not among the metrics")
        return "; ".join(found)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length` and `task.metrics`."""
        return {
            "task.max_length": longest_input(facts, _LONGEST),
            "task.metrics": Default(value=self._auto_metrics(), source="the usual metrics, without those that generate text"),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """Lengths that the model's positions do not reach."""
        lengths = {"max_length": self.options.max_length, "max_new_tokens": self.options.generation.max_new_tokens}
        return beyond_positions(facts, lengths)

    def check_row(self, row: Row) -> None:
        """Raises RowError for wrong types and roles, roles out of order, empty contents, and where there is no answer to learn."""
        self._conversation(row)

    def _conversation(self, row: Row) -> Conversation:
        # Rows without an answer are rows to predict; before anything is learned there are none.
        return read_conversation(row, self._layout, system=self.options.system, may_ask=bool(self._layouts))

    # --- what it learns ------------------------------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the layouts of the rows and the content of a template file.

        Raises ModelError if that cannot be read, DataError if the rows have none of the columns that the task reads.
        """
        path = template_file(self.options.chat_template)
        self._template_text = None if path is None else read_template(path)
        self._layouts = sorted({layout_of(row, self._layout) for row in rows})
        if not self._layouts:
            # A table without any of the columns hands out no rows, so that none of them was checked.
            message = f"the training rows have none of the columns {', '.join(self.columns())}"
            hint = "Say which column holds what: `data: {columns: {prompt: ..., completion: ...}}`, or another layout's"
            raise DataError(Problem(message=message, key="data.columns", hint=hint))

    def learn_encoded(self, numbers: Callable[[str], ndarray]) -> None:
        """Freezes the length of the longest answer that ends a training row."""
        self._longest_answer = int(numbers("answer_length").max(initial=0))

    def state(self) -> dict[str, Any]:
        """`layouts`; `longest_answer`: tokens, its end included, 0 before training rows are encoded; `chat_template`: the content of
        the file, null if the option names none."""
        return {"layouts": self._layouts, "longest_answer": self._longest_answer, "chat_template": self._template_text}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._layouts, self._longest_answer = list(state["layouts"]), int(state["longest_answer"])
        self._template_text = state["chat_template"]

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Rows, turns, answers and their characters, and how long generated answers may get."""
        turns, answers = [], []
        for row in rows:
            messages = self._conversation(row).messages
            turns.append(len(messages))
            answers += [len(message["content"]) for message in messages if message["role"] == "assistant"]
        facts = {"rows": len(turns), "turns": spread(turns), "answers": len(answers), "characters_of_answers": spread(answers)}
        return {**facts, "max_new_tokens": self._max_new_tokens()}

    def _max_new_tokens(self) -> int:
        if self.options.generation.max_new_tokens != "auto":
            return int(self.options.generation.max_new_tokens)
        longest = self._longest_answer
        return longest if self._positions is None else min(longest, max(1, self._positions // 2))

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The language model's own."""
        return Head(auto_class="AutoModelForCausalLM", peft_task_type="CAUSAL_LM", pretrained=self.pretrained_head)

    def _template(self, processor: Any) -> ChatTemplate:
        return find_template(self.options.chat_template, self._template_text, processor)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`input_ids`, `supervised` (1 for each token that counts), `length`, `truncated`, `row`; for training rows also
        `answer_length`, tokens of the last answer (all that count under train_on: all), for others `prompt_ids`, what precedes it.

        Raises RowError for conversations that the template refuses or whose answers cannot be told apart, ModelError if there is no
        template. Training rows of which no answer is left are left out, unless `on_empty_target` says otherwise.
        """
        if self.options.max_length == "auto":
            raise ValueError("max_length is still `auto`: fill it from defaults()")
        template, features, start = self._template(processor), list[Features](), 0
        pending = iter(rows)
        while chunk := list(islice(pending, _ROWS_AT_A_TIME)):
            conversations = [self._conversation(row) for row in chunk]
            found = encode_conversations(conversations, template, self.options.train_on, self.options.max_length, training=training)
            for index, (conversation, feature) in enumerate(zip(conversations, found, strict=True)):
                if conversation.answered and not any(feature["supervised"]):
                    self._check_may_drop(conversation)
                    if training:
                        continue
                features.append({**feature, "row": start + index})
            start += len(chunk)
        return features

    def _check_may_drop(self, conversation: Conversation) -> None:
        if self.options.on_empty_target == "error":
            message = f"no token of its answers is among the first {self.options.max_length}"
            hint = "Raise task.max_length, or set `task.on_empty_target: drop` to leave such rows out of training"
            raise RowError(conversation.column, message, hint)

    def bind(self, model: nn.Module, processor: Any) -> None:
        """Prepares the loss; finds the tokens that end an answer; puts template and end tokens where exports take them from."""
        from ftkit.tasks.parts.language_loss import LanguageScorer, position_count, probe_tokens

        self._scorer = LanguageScorer(model, {"input_ids": probe_tokens(processor)})
        self._positions = position_count(model)
        template = self._template(processor)
        if self.options.chat_template != "auto":
            processor.chat_template = template.source
        generation: Any = getattr(model, "generation_config", None)
        known = getattr(generation, "eos_token_id", None)
        stops = {processor.eos_token_id, *(known if isinstance(known, list) else [known])}
        try:
            stops.add(template.end_id())
        except (RowError, ModelError):
            # Only training on all tokens gets this far with a template that ends no answers.
            pass
        self._stop_ids = sorted(token for token in stops if token is not None)
        if generation is not None:
            generation.eos_token_id = self._stop_ids

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `targets` (what each position must predict, or IGNORED): int64 (B, T), padded on the right;
        `example`: int64 (B,)."""
        import torch

        batch = pad_inputs(features, processor)
        examples = torch.tensor([int(item["example"]) for item in features])
        return {**batch, "targets": next_tokens(features, batch["input_ids"]), "example": examples}

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask")

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example`, `nll` (float, summed over its supervised tokens), `tokens` (int, their number), `correct` (int)."""
        rows = len(batch["example"])
        sums = [
            outputs.by_row(values, rows).tolist()
            for values in (outputs.nll, outputs.nll.new_ones(len(outputs.nll)), outputs.correct)
        ]
        return [
            {"example": example, "nll": nll, "tokens": int(tokens), "correct": int(correct)}
            for example, nll, tokens, correct in zip(batch["example"].tolist(), *sums, strict=True)
        ]

    def generates(self, names: Sequence[str] | None) -> bool:
        """Whether one of these metrics (None: of all) is one of generated answers."""
        return any(spec.name in _GENERATED for spec in self.metrics() if names is None or spec.name in names)

    def dialogue(self, processor: Any) -> ChatDialogue:
        """Turns of a user and the model, written by the chat template."""
        return ChatDialogue(self._template(processor), self.options.system, room=self._room())

    def _room(self) -> int | None:
        """Tokens that a prompt may have, None for any number."""
        return None if self._positions is None else max(1, self._positions - self._max_new_tokens())

    def _prompts(self, features: Sequence[Features], processor: Any) -> Batch:
        """A prompt that leaves no room for the answer loses its beginning."""
        from ftkit.tasks.parts.generation import left_pad

        room = self._room() or 0
        return left_pad([[int(token) for token in item["prompt_ids"]][-room:] for item in features], processor.pad_token_id)

    def _limits(self, processor: Any) -> dict[str, Any]:
        return {"max_new_tokens": self._max_new_tokens(), "stop_ids": self._stop_ids, "pad_id": processor.pad_token_id}

    def _written(self, features: Sequence[Features], written: Sequence[Sequence[int]], processor: Any) -> list[Prediction]:
        """`text` of the answer to each prompt, whether it is `complete`: ended by the model, not by `max_new_tokens`, and `prompt_cut`:
        whether the prompt lost its beginning."""
        new, room = self._max_new_tokens(), self._room()
        texts = processor.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            {"text": text, "complete": len(ids) < new, "prompt_cut": room is not None and len(item["prompt_ids"]) > room}
            for text, ids, item in zip(texts, written, features, strict=True)
        ]

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def _arrays(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, ndarray]:
        """`nll`, `tokens`, `correct` and, where answers were generated, `references` and `predictions`."""
        import numpy as np

        # Rows whose answer was cut off, or that were only to be generated for, say nothing about tokens.
        arrays = {name: np.array([item.get(name, 0) for item in predictions], np.float64) for name in ("nll", "tokens", "correct")}
        if all("text" in item for item in predictions):
            references = [[self._reference(row, number)] for number, row in enumerate(rows, start=1)]
            arrays |= generated_text.as_arrays(references, [item["text"] for item in predictions])
        return arrays

    def _reference(self, row: Row, number: int) -> str:
        conversation = self._conversation(row)
        if not conversation.answered:
            message = "the conversation does not end with an answer to compare with"
            raise DataError(
                Problem(message=message, place=f"row {number}", key=conversation.column, hint="Add it, or use `ftkit predict`")
            )
        return conversation.answer

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss. All are None if any number is not finite."""
        return self._metrics.score(self._arrays(predictions, rows), names, allow_code=self.allow_code)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics, where every number is finite."""
        arrays = self._arrays(predictions, rows)
        resampled = {**generated_text.RESAMPLED, AnswerMatch.name: self._matching.resampled}
        return headline_intervals(self.metrics(), arrays, resampled) if finite(arrays) else {}

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """`examples`: the first generated answers beside the references, shortened."""
        if not predictions or not all("text" in item for item in predictions):
            return {}
        chosen = list(zip(predictions, rows, strict=False))[:_SHOWN_EXAMPLES]
        return {
            "examples": [
                {
                    "row": number,
                    "reference": self._reference(row, number)[:_SHOWN_CHARACTERS],
                    "generated": item["text"][:_SHOWN_CHARACTERS],
                }
                for number, (item, row) in enumerate(chosen, start=1)
            ]
        }

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`text`; `complete`: false where `max_new_tokens` ended it; `prompt_cut`, where the model has no room for the prompt."""
        shown = {"text": prediction["text"], "complete": prediction["complete"]}
        return {**shown, "prompt_cut": True} if prediction["prompt_cut"] else shown

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens: `answer` for those that count, `special token`; then the cut as a note without a token."""
        return shown_answers(features, processor)
