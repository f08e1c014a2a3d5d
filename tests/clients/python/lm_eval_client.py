"""lm-eval in both of its modes, and its remote tokenizer; the task's rows are local."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import BASE_URL, MODEL, report

TASKS = Path(__file__).parent.parent / "lm_eval"
accuracy = {}
with tempfile.TemporaryDirectory() as folder:
    for file in TASKS.iterdir():
        Path(folder, file.name).write_text(file.read_text().replace("FOLDER", str(TASKS)))
    for mode, path, task, extra in (
        ("local-completions", "completions", "lorachat_facts", "tokenizer_backend=remote"),
        ("local-chat-completions", "chat/completions", "lorachat_words", "tokenizer_backend=None"),
    ):
        arguments = (
            f"model={MODEL},base_url={BASE_URL}/{path},num_concurrent=1,max_retries=1,{extra}"
        )
        command = [sys.executable, "-m", "lm_eval", "run", "--model", mode, "--model_args", arguments, "--tasks", task,
                   "--include_path", folder, "--output_path", f"{folder}/{mode}"]  # fmt: skip
        if "chat" in mode:
            command.append("--apply_chat_template")
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=folder,
            env={**os.environ, "HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "unused"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        (file,) = Path(folder, mode).rglob("results*.json")
        accuracy[task] = json.loads(file.read_text())["results"][task]
assert accuracy["lorachat_facts"]["acc,none"] > 0.5, accuracy

report("local-completions (loglikelihood, remote tokenizer), local-chat-completions")
