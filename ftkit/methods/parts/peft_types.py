"""What the method `peft` knows of PEFT's tuners (0.21): their settings, what can be done with them, why some are refused.

Data only, so that recipes are checked without importing PEFT. The types of settings are written as alternatives: `integer | null`,
`'relu' | 'qr'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HARNESS = "PEFT's method comparison (MetaMathQA, Llama 3.2 3B)"
MEASURED = "ftkit: best of 1e-4, 1e-3, 1e-2 and 1e-1 by validation loss, MiniLM on BBC News, 40 steps"


@dataclass(frozen=True, kw_only=True)
class PeftTuner:
    """One tuner of PEFT.

    what: what it trains, in a few words. paper: where it is described. prefix: how the names of its parameters start.
    settings: type of each setting that may be given. preset: values that ftkit gives to settings left out.
    rate, decoder_rate: learning rate for encoders, encoder-decoders and images, and for decoders.
    conv1d: whether it knows transformers' Conv1D (GPT-2). merge, quantized: see `Capabilities`.
    """

    what: str
    paper: str
    prefix: str
    settings: Mapping[str, str]
    preset: Mapping[str, Any] = field(default_factory=dict)
    rate: float
    decoder_rate: float = 1e-4
    merge: bool = True
    quantized: bool = False
    conv1d: bool = False


SET_BY_FTKIT: Mapping[str, str] = {
    "peft_type": "it is `type`",
    "task_type": "the task decides",
    "inference_mode": "ftkit sets it",
    "base_model_name_or_path": "it is `model.name`",
    "revision": "it is `model.revision`",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
    "modules_to_save": "the head is trained and saved without it",
    "target_modules": "use `targets` of the method",
    "exclude_modules": "use `targets` of the method",
    "layers_to_transform": "use `blocks` of the method",
    "layers_pattern": "use `blocks` of the method",
    "fan_in_fan_out": "ftkit knows how the layers store their weights",
    "bias": "biases of the base would be trained outside the adapter; use `bitfit` to train biases",
    "save_projection": "always saved, since another version of torch may draw other numbers",
    "save_indices": "always saved",
    "save_only_topk_weights": "such a file can be neither merged nor trained on",
    "save_precomputed_indices": "always saved",
    "progressbar": "ftkit shows its own progress",
    "runtime_offload_base_weight": "ftkit keeps the model on one device",
    "sample_at_inference": "the same input must give the same output",
    "generator_seed": "it belongs to sample_at_inference",
    "use_asa": "it needs its own calls during training; for ranks that move use `adalora`",
    "asa_target_subspaces": "it belongs to use_asa",
    "asa_importance_beta": "it belongs to use_asa",
    "asa_uncertainty_beta": "it belongs to use_asa",
    "asa_schedule_exponent": "it belongs to use_asa",
    "init_warmup": "it belongs to use_asa",
    "final_warmup": "it belongs to use_asa",
    "mask_interval": "it belongs to use_asa",
}
"""Settings of PEFT's configs that a recipe may not give, and why."""

OWN_METHOD: Mapping[str, str] = {
    "ADALORA": "adalora",
    "BOFT": "boft",
    "IA3": "ia3",
    "LN_TUNING": "layernorm",
    "LOHA": "loha",
    "LOKR": "lokr",
    "LORA": "lora",
    "MULTITASK_PROMPT_TUNING": "multitask-prompt-tuning",
    "OFT": "oft",
    "PREFIX_TUNING": "prefix-tuning",
    "PROMPT_TUNING": "prompt-tuning",
    "P_TUNING": "p-tuning",
    "VERA": "vera",
}
"""Types that are methods by themselves."""

REFUSED: Mapping[str, str] = {
    "ADAPTION_PROMPT": "PEFT has it for models of Llama's kind only, and cannot save a head beside it; use `prefix-tuning`",
    "BEFT": "it adds biases to layers that have some; `bitfit` trains those of all layers, norms too",
    "CARTRIDGE": "it is filled from a long text by a script of its own; use `prefix-tuning`",
    "CPT": "PEFT has it for causal language models only, and its adapters cannot generate; use `prompt-tuning`",
    "OSF": "it rewrites the weights, and PEFT cannot take its adapter out of a model again; use `full`",
    "POLY": "it routes each example by the number of its task, which no recipe gives; use `lora`",
    "SHADOW": "it runs a second model beside the first instead of adapting layers; use `lora`",
    "TRAINABLE_TOKENS": "PEFT can train no head beside it, so that a new head would stay random",
    "XLORA": "PEFT 0.21 does not save all of its weights; use `lora`",
}
"""Types that do not keep what ftkit promises of adapters, and why."""


def _settings(groups: str) -> dict[str, str]:
    """Type by name, out of `type: name, name; type: name`."""
    pairs = [group.rsplit(": ", 1) for group in groups.split("; ")]
    return {name: kind for kind, names in pairs for name in names.split(", ")}


TUNERS: Mapping[str, PeftTuner] = {
    "ADAMSS": PeftTuner(
        what="updates in subspaces of the weight's singular vectors, found by clustering",
        paper="https://github.com/huggingface/peft",
        prefix="adamss_",
        settings=_settings(
            "integer: r, num_subspaces, subspace_rank, random_seed; number: svd_threshold; boolean: use_dynamic_rank; "
            "'orthogonal' | null: init_weights"
        ),
        rate=1e-2,
    ),
    "C3A": PeftTuner(
        what="a block-circular update, computed by Fourier transforms",
        paper="https://arxiv.org/abs/2407.19342",
        prefix="c3a_",
        settings=_settings(
            "integer: block_size; mapping | null: block_size_pattern; "
            "boolean | 'gaussian' | 'kaiming_uniform' | 'xavier_uniform' | null: init_weights"
        ),
        rate=1e-1,
        decoder_rate=3e-1,
    ),
    "DEFT": PeftTuner(
        what="directions projected out of the weight, and a low-rank update",
        paper="https://github.com/huggingface/peft",
        prefix="deft_",
        settings=_settings(
            "integer: r; integer | null: alpha; number: init_scale, deft_dropout; boolean: para, init_weights; "
            "'relu' | 'qr': decomposition_method"
        ),
        rate=1e-3,
        conv1d=True,
    ),
    "DELORA": PeftTuner(
        what="a low-rank update of normalized parts with a trained strength",
        paper="https://arxiv.org/abs/2503.18225",
        prefix="delora_",
        settings=_settings(
            "integer: r, delora_lambda; number: module_dropout; boolean: init_weights; mapping | null: rank_pattern, lambda_pattern"
        ),
        rate=1e-2,
    ),
    "FOURIERFT": PeftTuner(
        what="some coefficients of the update's Fourier transform",
        paper="https://arxiv.org/abs/2405.03003",
        prefix="fourierft_",
        settings=_settings(
            "integer: n_frequency; integer | null: random_loc_seed; number: scaling; boolean: init_weights; "
            "mapping | null: n_frequency_pattern"
        ),
        rate=1e-1,
        conv1d=True,
        quantized=True,
    ),
    "FROD": PeftTuner(
        what="a rotated, sparse update on axes that all layers share",
        paper="https://doi.org/10.1609/aaai.v40i31.39813",
        prefix="frod_",
        settings=_settings(
            "integer: projection_prng_key; number: frod_dropout, sparse_rate, regularization_alpha; boolean: init_weights"
        ),
        preset={"progressbar": False},
        rate=1e-2,
        conv1d=True,
    ),
    "GLORA": PeftTuner(
        what="scales and shifts of weight and bias, some of low rank",
        paper="https://arxiv.org/abs/2306.07967",
        prefix="glora_",
        settings=_settings(
            "integer: r; boolean: init_weights; 'lora' | 'vector' | 'constant' | 'none': config_A_B; "
            "'lora' | 'vector' | 'none': config_C; 'vector' | 'constant' | 'none': config_D_E"
        ),
        rate=1e-3,
        decoder_rate=5e-4,
    ),
    "GRALORA": PeftTuner(
        what="a low-rank update for each block of the weight",
        paper="https://arxiv.org/abs/2505.20355",
        prefix="gralora_",
        settings=_settings("integer: r, hybrid_r, alpha, gralora_k; number: gralora_dropout; boolean: init_weights"),
        rate=1e-3,
        decoder_rate=2e-4,
        conv1d=True,
    ),
    "HIRA": PeftTuner(
        what="the elementwise product of the weight and a low-rank matrix",
        paper="https://openreview.net/forum?id=TwJrTz9cRS",
        prefix="hira_",
        settings=_settings(
            "integer: r; number: hira_dropout; boolean | 'gaussian' | null: init_weights; mapping | null: rank_pattern"
        ),
        rate=1e-2,
        decoder_rate=4.5e-3,
        conv1d=True,
        quantized=True,
    ),
    "HRA": PeftTuner(
        what="a chain of Householder reflections that turns the weight",
        paper="https://arxiv.org/abs/2405.17484",
        prefix="hra_",
        settings=_settings("integer: r; boolean: apply_GS, init_weights"),
        rate=1e-2,
    ),
    "LILY": PeftTuner(
        what="low-rank updates whose B are mixed from ones that layers share",
        paper="https://arxiv.org/abs/2407.09946",
        prefix="lily_",
        settings=_settings("integer: r, stride_A, num_B; number: scaling; boolean: init_weights"),
        rate=1e-3,
        merge=False,
        quantized=True,
    ),
    "MISS": PeftTuner(
        what="one small matrix, repeated over the weight in shards (formerly Bone)",
        paper="https://arxiv.org/abs/2409.15371",
        prefix="miss_",
        settings=_settings("integer: r, mini_r; number: miss_dropout; boolean | 'bat' | 'mini': init_weights"),
        rate=1e-3,
        quantized=True,
    ),
    "PEANUT": PeftTuner(
        what="a small network that computes the update from the weight",
        paper="https://arxiv.org/abs/2410.01870",
        prefix="peanut_",
        settings=_settings("integer: r, depth; number: scaling; boolean: init_weights; text: act_fn"),
        rate=1e-3,
    ),
    "PSOFT": PeftTuner(
        what="rotations inside the space of the weight's main singular vectors",
        paper="https://openreview.net/forum?id=FSHrinMArK",
        prefix="psoft_",
        settings=_settings(
            "integer: r, psoft_alpha, psoft_svd_lowrank_niter, random_seed, num_cayley_neumann_terms; "
            "number: psoft_dropout; number | null: cayley_neumann_eps; "
            "boolean: psoft_orth, psoft_mag_b, psoft_mag_a, use_cayley_neumann, init_weights; "
            "'psoft_init' | 'pissa_init': ab_svd_init; 'full' | 'lowrank': psoft_svd"
        ),
        rate=1e-2,
    ),
    "PVERA": PeftTuner(
        what="VeRA whose scales are drawn around trained means",
        paper="https://arxiv.org/abs/2512.07703",
        prefix="pvera_lambda_",
        settings=_settings("integer: r, projection_prng_key; number: pvera_dropout, d_initial; boolean: init_weights"),
        rate=1e-2,
        decoder_rate=3e-3,
        conv1d=True,
        quantized=True,
    ),
    "RANDLORA": PeftTuner(
        what="a full-rank sum of scaled random low-rank matrices",
        paper="https://arxiv.org/abs/2502.00987",
        prefix="randlora_",
        settings=_settings(
            "integer: r, projection_prng_key, randlora_alpha; number: randlora_dropout; boolean: sparse, very_sparse, init_weights"
        ),
        rate=1e-3,
        conv1d=True,
        quantized=True,
    ),
    "ROAD": PeftTuner(
        what="rotations and scales of pairs of outputs",
        paper="https://arxiv.org/abs/2409.00119",
        prefix="road_",
        settings=_settings("integer: group_size; boolean: init_weights; 'road_1' | 'road_2' | 'road_4': variant"),
        rate=1e-2,
        decoder_rate=1e-3,
        quantized=True,
    ),
    "SHIRA": PeftTuner(
        what="some entries of the weight, drawn at random",
        paper="https://arxiv.org/abs/2406.13175",
        prefix="shira_",
        settings=_settings("integer: r; integer | null: random_seed; boolean: init_weights; 'random': mask_type"),
        preset={"random_seed": 0},
        rate=1e-3,
        decoder_rate=3e-4,
        quantized=True,
    ),
    "SUPERTUNING": PeftTuner(
        what="the largest or smallest entries of the weight, and a low-rank update if wanted",
        paper="https://arxiv.org/abs/2607.09287",
        prefix="supertuning_",
        settings=_settings(
            "integer | null: r; number: sparsity, lora_dropout; number | null: lora_alpha; boolean: select_top, init_weights"
        ),
        rate=1e-3,
    ),
    "TINYLORA": PeftTuner(
        what="a few numbers that move the weight's singular vectors",
        paper="https://arxiv.org/abs/2602.04118",
        prefix="tinylora_",
        settings=_settings(
            "integer: r, u, projection_seed; number: weight_tying, init_v_bound, tinylora_dropout; boolean | text: init_weights"
        ),
        rate=1e-2,
        decoder_rate=1e-3,
        conv1d=True,
    ),
    "UNILORA": PeftTuner(
        what="one short vector, spread over the entries of all low-rank matrices",
        paper="https://arxiv.org/abs/2506.00799",
        prefix="unilora_",
        settings=_settings(
            "integer: r, proj_seed, theta_d_length; number: unilora_dropout, init_theta_d_bound; boolean: init_weights"
        ),
        rate=1e-2,
        decoder_rate=2e-3,
        conv1d=True,
    ),
    "VBLORA": PeftTuner(
        what="low-rank matrices mixed from a bank of vectors that all layers share",
        paper="https://arxiv.org/abs/2405.15179",
        prefix="vblora_",
        settings=_settings(
            "integer: r, num_vectors, vector_length, topk; number: vblora_dropout, init_vector_bank_bound, init_logits_std"
        ),
        rate=1e-2,
        decoder_rate=5e-4,
        conv1d=True,
    ),
    "WAVEFT": PeftTuner(
        what="some coefficients of the update's wavelet transform",
        paper="https://arxiv.org/abs/2505.12532",
        prefix="waveft_",
        settings=_settings(
            "integer: n_frequency, random_loc_seed; number: scaling; "
            "boolean: use_idwt, proportional_parameters, init_weights; text: wavelet_family; "
            "mapping | null: n_frequency_pattern"
        ),
        rate=1e-2,
        conv1d=True,
        quantized=True,
    ),
}
"""Types that keep the contract of ftkit's methods (`tests/methods/test_contract.py`)."""
