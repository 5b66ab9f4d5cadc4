"""Which architectures keep their input as one sequence, by model type. Tables alone: `validate` reads them without torch."""

from __future__ import annotations

PLAIN_VISION = frozenset({"deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn"})
"""Vision model types whose patches are one sequence from the first block to the last, without positions inside attention."""

WITHOUT_CACHE = frozenset({"falcon_mamba", "mamba", "mamba2", "reformer", "rwkv"})
"""Model types that remember what they read in something else than a cache of positions."""

CHANGING_LENGTH = frozenset({"canine", "funnel", "perceiver"})
"""Model types whose sequence has another length inside than their input has."""

OWN_ATTENTION = frozenset(
    """
    big_bird bigbird_pegasus bloom canine codegen convbert convnext deberta falcon flaubert fnet funnel gpt_neo gptj ibert led
    longformer mamba mamba2 mpnet mpt nystromformer prophetnet pvt reformer roformer rwkv squeezebert swinv2 xlm xlnet yoso
    """.split()
)
"""Model types whose attention is not computed by one of transformers' exchangeable functions, into which a prefix can be put."""

WITHOUT_ROWS = frozenset({"fsmt", "reformer", "xlnet"})
"""Model types whose blocks cannot tell rows apart: positions come first there, or the backward pass runs blocks by itself."""
