"""Fits lengths.json to recorded chats: `python -m benchmarks.simulation.fit FOLDER TOKENIZER_JSON`.

Only the parameters are kept. Lengths are log-normal, as message lengths of chats are found to be (the mean and the
deviation of their logarithms are the maximum-likelihood estimates); the number of turns is geometric.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev

LENGTHS_FILE = Path(__file__).with_name("lengths.json")


def log_normal(lengths: Iterable[int]) -> dict[str, float]:
    logarithms = [math.log(max(1, length)) for length in lengths]
    return {"mu": round(fmean(logarithms), 3), "sigma": round(pstdev(logarithms), 3)}


def fit(folder: Path, tokenizer_file: Path) -> dict[str, object]:
    """Raises FileNotFoundError if the folder has no recorded conversations."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    firsts, laters, answers, turns = [], [], [], []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if "conversations" not in row:
                continue
            said = [
                (turn["from"], len(tokenizer.encode(turn["value"], add_special_tokens=False).ids))
                for turn in row["conversations"]
            ]
            asked = [length for who, length in said if who == "human"]
            if not asked:
                continue
            firsts.append(asked[0])
            laters += asked[1:]
            answers += [length for who, length in said if who == "gpt"]
            turns.append(len(asked))
    if not turns:
        raise FileNotFoundError(f"{folder} holds no *.jsonl file with conversations")
    return {
        "conversations": len(turns),
        "mean_turns": round(fmean(turns), 3),
        "first_question": log_normal(firsts),
        "later_question": log_normal(laters),
        "answer": log_normal(answers),
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = fit(Path(sys.argv[1]), Path(sys.argv[2]))
    LENGTHS_FILE.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))
