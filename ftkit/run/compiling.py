"""What torch.compile cannot do, in words."""

from __future__ import annotations

from ftkit.errors import Problem, RecipeError

COMPILERS = ("torch._dynamo.", "torch._inductor.")


def compile_failure(error: Exception) -> RecipeError | None:
    """The error to show for one of torch's compiler (no C++ compiler on this machine, code that it cannot follow), None for others."""
    if not f"{type(error).__module__}.".startswith(COMPILERS):
        return None
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    message = f"torch cannot compile this model here: {reason[:300]}"
    return RecipeError(Problem(message=message, key="train.compile", hint="Set it to false; it changes speed and nothing else"))
