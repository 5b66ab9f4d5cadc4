"""Started as its own process by the contract suite: rebuilds trained models from files alone and writes their logits.

python -m tests.methods.reload FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file, save_file

from ftkit.models.trainable import load_trainable
from ftkit.tuners.registration import register_tuners
from ftkit.tuners.wrap import load_adapter
from tests.methods.cases import fresh_model, logits_of, make_method

HEAD_SEED = 99


def main(folder: Path) -> None:
    register_tuners()
    results = {}
    for number, (name, options, family) in enumerate(json.loads((folder / "cases.json").read_text())):
        model, layout = fresh_model(family, HEAD_SEED)
        method = make_method(name, options, family)
        model = method.apply(model, layout)
        load_trainable(model, load_file(folder / f"{number}.safetensors"))
        method.restore(model, load_file(folder / f"{number}.method.safetensors"))
        results[f"{number} state"] = logits_of(model, family)
        if (folder / str(number)).is_dir():
            base, layout = fresh_model(family, HEAD_SEED)
            results[f"{number} adapter"] = logits_of(load_adapter(base, layout, folder / str(number)), family)
            plain = PeftModel.from_pretrained(fresh_model(family, HEAD_SEED)[0], folder / str(number), low_cpu_mem_usage=False)
            results[f"{number} peft"] = logits_of(plain, family)
    save_file(results, folder / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
