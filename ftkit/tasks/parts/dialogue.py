"""A conversation with a model, turn by turn, as an interactive session keeps it."""

from __future__ import annotations

from ftkit.tasks.base import Features, Prediction, RowError
from ftkit.tasks.parts.chat import Message
from ftkit.tasks.parts.templates import ChatTemplate


class ChatDialogue:
    """Turns of a user and a model, which a chat template makes a prompt of.

    system: system message to begin with. room: tokens that a prompt may have, None for any number; where the conversation takes more,
    its oldest turns are left out. An answer of which nothing came is forgotten, and the turn that asked for it.
    """

    commands = {
        "reset": "Forget what was said; the system message stays.",
        "system": "/system TEXT sets the system message, /system alone removes it. What was said stays.",
    }

    def __init__(self, template: ChatTemplate, system: str | None, *, room: int | None) -> None:
        self._template, self._system, self._room = template, system, room
        self._said: list[Message] = []
        self._asked: Message = {}
        self._left_out = 0

    def ask(self, text: str) -> list[Features]:
        """`prompt_ids`: the tokens of the conversation with the user's next turn. Raises RowError if the template refuses it."""
        self._asked, self._left_out = {"role": "user", "content": text}, 0
        tokens = self._prompt(self._said)
        while self._room is not None and len(tokens) > self._room and self._said:
            self._said, self._left_out = self._said[2:], self._left_out + 2
            tokens = self._prompt(self._said)
        return [{"prompt_ids": tokens, "length": len(tokens)}]

    def _prompt(self, said: list[Message]) -> list[int]:
        beginning = [{"role": "system", "content": self._system}] if self._system else []
        return self._template.tokens([self._template.prompt([*beginning, *said, self._asked], None)])[0]

    def answered(self, prediction: Prediction) -> str:
        """Adds the turn and its answer (`text`); says which turns were left out, or that the turn itself was too long."""
        if prediction["text"].strip():
            self._said += [self._asked, {"role": "assistant", "content": prediction["text"]}]
        if prediction["prompt_cut"]:
            return f"the model has room for {self._room:,} tokens of a question: the beginning of this one was left out"
        if self._left_out:
            return f"the model has room for {self._room:,} tokens: the {self._left_out} oldest turns were left out"
        return ""

    def command(self, name: str, argument: str) -> str:
        """`reset` and `system`. Raises RowError if the template has no place for a system message."""
        if name == "reset":
            self._said = []
            return "what was said is forgotten"
        before, self._system = self._system, argument or None
        try:
            self._asked = {"role": "user", "content": "a"}
            self._prompt([])
        except RowError:
            self._system = before
            raise
        return "the system message is set" if self._system else "there is no system message now"
