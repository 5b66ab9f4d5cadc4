"""Hostile chat templates, from the tokenizer and from a file: Jinja that reaches for Python, files, or endless work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.security.conftest import Command
from tests.security.hostile import Mark
from tests.security.test_model_folders import edit

SHOWN = "{% for turn in messages %}{{ turn.content }}{% endfor %}"


def escapes(mark: Mark) -> dict[str, str]:
    shell = mark.shell()
    return {
        "subclasses": f"{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{% if c.__name__ == 'Popen' %}}"
        f"{{{{ c(['sh', '-c', \"{shell}\"]) }}}}{{% endif %}}{{% endfor %}}",
        "globals of a macro": f"{{{{ raise_exception.__globals__['os'].system(\"{shell}\") }}}}",
        "builtins": f"{{{{ self.__init__.__globals__.__builtins__.exec(\"__import__('os').system('{shell}')\") }}}}",
        "cycler": f'{{{{ cycler.__init__.__globals__.os.popen("{shell}") }}}}',
        "lipsum": f"{{{{ lipsum.__globals__['os'].popen(\"{shell}\").read() }}}}",
        "attr filter": f"{{{{ (''|attr('__class__')|attr('__mro__'))[1]|attr('__subclasses__')() }}}}{SHOWN}",
        "format map": "{{ '{0.__class__.__mro__}'.format_map({'0': messages}) }}{{ ('%s'|format(messages)).__class__.mro() }}",
        "format of str": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "include": "{% include '/etc/passwd' %}",
        "import": "{% import '/etc/passwd' as x %}{{ x }}",
        "extends": "{% extends '/etc/passwd' %}",
        "mutation": "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}" + SHOWN,
        "do tag": f"{{% do messages.clear() %}}{SHOWN}",
        "range": "{% for a in range(999999999) %}{{ a }}{% endfor %}",
        "raise": "{{ raise_exception('\x1b[2J\x1b]0;owned\x07') }}",
        "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        # More than any machine can address; what a machine can hold, a template may take (see docs/security.md).
        "huge text": "{{ 'x' * 10 ** 15 }}",
        "huge padding": "{{ '%999999999999999d' % 1 }}",
        "huge center": "{{ 'x'.center(10 ** 15) }}",
    }


@pytest.fixture
def recipe(llama: Path, tmp_path: Path) -> Path:
    rows = [{"instruction": "w1", "output": "w2"}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {llama}\ntask: instruction-tuning\ndata: {{train: rows.jsonl}}\nmethod: lora\n")
    return path


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "file of the recipe"])
@pytest.mark.parametrize("name", list(escapes(Mark(Path("x")))))
def test_templates_stay_in_their_sandbox(name: str, place: str, mark: Mark, recipe: Path, llama: Path, command: Command) -> None:
    template, overrides = escapes(mark)[name], []
    if place == "tokenizer_config.json":
        edit(llama / place, chat_template=template)
    elif place == "chat_template.jinja":
        (llama / place).write_text(template)
    else:
        (recipe.parent / "evil.jinja").write_text(template)
        overrides = [f"task.chat_template={recipe.parent / 'evil.jinja'}"]
    ended = command("inspect", recipe, *overrides)
    assert ended.code == 2, ended.said
    assert "template" in ended.err
    assert "root:" not in ended.said
    assert "\x1b" not in ended.said
    assert len(ended.err) < 5000


def test_templates_of_tokenizers_are_data_where_none_is_asked_for(mark: Mark, bert: Path, finished: Path, command: Command) -> None:
    (bert / "chat_template.jinja").write_text(escapes(mark)["lipsum"])
    (bert / "additional_chat_templates").mkdir()
    (bert / "additional_chat_templates" / "x.jinja").write_text(escapes(mark)["cycler"])
    ended = command("inspect", finished / "recipe.yaml", f"model={bert}")
    assert ended.code == 0, ended.said
