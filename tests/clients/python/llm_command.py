"""The `llm` command with an OpenAI-compatible model entry."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import BASE_URL, MODEL, report

with tempfile.TemporaryDirectory() as folder:
    entry = f"- model_id: lorachat\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n  supports_schema: true\n"
    Path(folder, "extra-openai-models.yaml").write_text(entry)
    environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "unused"}
    for flags in ([], ["--no-stream"], ["--schema", "name str, age int"]):
        command = [
            sys.executable,
            "-m",
            "llm",
            "-m",
            "lorachat",
            "Say hello",
            "-o",
            "max_tokens",
            "60",
            *flags,
        ]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()

report("prompt, --no-stream, --schema")
