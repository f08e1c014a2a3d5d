"""Greedy tokens of a GGUF model, and those of a text, as JSON: run by the environment that has llama-cpp-python.

`python llama_cpp_greedy.py MODEL IDS TEXT [LORA]`.
"""

import json
import sys
from itertools import islice

from llama_cpp import GGML_TYPE_F32, Llama

model, ids, text = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
lora = sys.argv[4] if len(sys.argv) > 4 else None
# The cache in float32: its default, float16, would decide near ties otherwise than the others do.
llm = Llama(
    model,
    lora_path=lora,
    n_ctx=256,
    n_threads=1,
    type_k=GGML_TYPE_F32,
    type_v=GGML_TYPE_F32,
    verbose=False,
)
answer = list(islice(llm.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0), 12))
tokens = llm.tokenize(text.encode(), add_bos=False, special=True)
sys.stdout.write(json.dumps([answer, tokens]))
