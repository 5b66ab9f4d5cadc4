"""Chat templates that come with ftkit, by name. All mark their answers.

The beginning-of-text token is none of their business: it is put before them where the tokenizer itself begins texts with it.
"""

from __future__ import annotations

_NO_TOOLS = "{%- if tools %}{{- raise_exception('it has no place for tools') }}{% endif %}"
_NO_CALLS = "{%- if message.tool_calls %}{{- raise_exception('it has no place for tool calls') }}{% endif %}"

BUILT_IN = {
    # Stanford Alpaca (Taori et al. 2023), train.py; further turns as in the first one.
    "alpaca": _NO_TOOLS
    + r"""
{%- if messages[0].role != 'system' %}
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}
{%- endif %}
{%- for message in messages %}"""
    + _NO_CALLS
    + r"""
{%- if message.role == 'system' %}
{{- message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{{- '### Instruction:\n' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}
{{- '### Response:\n' }}{% generation %}{{- message.content + eos_token }}{% endgeneration %}{{- '\n\n' }}
{%- else %}
{{- raise_exception('it has no place for the role ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\n' }}{% endif %}""",
    # OpenAI's ChatML; tools and their calls as Qwen2.5 writes them (Hermes format).
    "chatml": r"""
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{% endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n' }}
{{- '</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{%- if message.content or not loop.first %}{{- '\n' }}{% endif %}
{{- '<tool_call>\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
{{- (function.arguments if function.arguments is string else function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- else %}
{{- message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}""",
    # Gemma (Gemma Team 2024): no system role, so its text begins the first turn of the user.
    "gemma": _NO_TOOLS
    + r"""
{%- set first = namespace(text='') %}
{%- for message in messages %}"""
    + _NO_CALLS
    + r"""
{%- if message.role == 'system' %}
{%- set first.text = message.content + '\n\n' %}
{%- elif message.role == 'user' %}
{{- '<start_of_turn>user\n' + first.text + message.content + '<end_of_turn>\n' }}
{%- set first.text = '' %}
{%- elif message.role == 'assistant' %}
{{- '<start_of_turn>model\n' }}{% generation %}{{- message.content + '<end_of_turn>' }}{% endgeneration %}{{- '\n' }}
{%- else %}
{{- raise_exception('it has no place for the role ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}""",
    # Llama 3 (Meta 2024), which trims contents.
    "llama3": _NO_TOOLS
    + r"""
{%- for message in messages %}"""
    + _NO_CALLS
    + r"""
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- (message.content | trim) + '<|eot_id|>' }}{% endgeneration %}
{%- else %}
{{- (message.content | trim) + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    # No template at all: contents one after the other, the end token after answers.
    "none": _NO_TOOLS
    + r"""
{%- for message in messages %}"""
    + _NO_CALLS
    + r"""
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + eos_token }}{% endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}""",
    # Zephyr (Tunstall et al. 2023).
    "zephyr": _NO_TOOLS
    + r"""
{%- for message in messages %}"""
    + _NO_CALLS
    + r"""
{{- '<|' + message.role + '|>\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + eos_token }}{% endgeneration %}
{%- else %}
{{- message.content + eos_token }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}""",
}
