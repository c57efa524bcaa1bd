"""How long a reader waits for an embedded model and its first answer."""

import json
import os
import subprocess
import sys

import pytest

MOST = 3.0  # seconds to load a model and solve one problem with it, once everything is imported

ONE = """
import json, time
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV2ForCausalLM, OlmoeForCausalLM
from transformers import Qwen2MoeForCausalLM, Qwen3MoeForCausalLM
from mobile_nb import load, offload, systems, tasks
from mobile_nb.model.find import STANDS_FOR

(problem,), found = tasks.load("word-problems", n=1, seed=0), {}
for name in STANDS_FOR:
    begin = time.perf_counter()
    model, tokenizer = load(name)
    loaded = time.perf_counter()
    with offload(model, systems.mobile(0.7), tokenizer=tokenizer) as engine:
        tokens = engine.generate(problem.prompt, max_new_tokens=problem.longest, do_sample=False).token_ids
    found[name] = loaded - begin, time.perf_counter() - loaded, len(tokens)
print(json.dumps(found))
"""


def measured() -> dict[str, list]:
    """Seconds of loading, seconds of offloading and writing, and tokens of each embedded model, in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", ONE], env=environment, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_embedded_model_is_loaded_and_solves_a_problem_in_under_three_seconds():
    """Measured, on one thread; where another process was in the way, a second time, and the best of the two counts."""
    best: dict[str, list] = {}
    for _ in range(2):
        for name, row in measured().items():
            best[name] = min(row, best.get(name, row), key=lambda each: each[0] + each[1])
        if all(load + write < MOST for load, write, _ in best.values()):
            break
    for name, (load, write, tokens) in best.items():
        print(f"{name}: {load:.2f} s to load, {write:.2f} s to offload and to write {tokens} tokens")
        assert tokens > 20 and load + write < MOST, f"{name} took {load:.2f} + {write:.2f} s"
    assert len(best) == 4
