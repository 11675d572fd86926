"""Small random models of many families, and what transformers generates with them."""

from typing import Any, NamedTuple

import numpy as np
import torch

from llmds_nb.integrations.transformers.random_models import random_model

VOCABULARY = 512
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
_GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}
_GPT2 = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512}


class Family(NamedTuple):
    """A family of models: its configuration, and why it is refused if it is."""

    config: dict[str, Any]
    refused: str = ""
    kind: str = ""  # transformers' model type, if the name here is another


FAMILIES: dict[str, Family] = {
    "llama": Family({}),
    "qwen2": Family({}),
    "qwen3": Family({}),
    "mistral": Family({"sliding_window": 24}),
    "gpt2": Family(_GPT2),
    "gemma": Family({}),
    "gemma2": Family({**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 20.0}),
    "gemma3": Family(_GEMMA, kind="gemma3_text"),
    "phi": Family({}),
    "phi3": Family({}),
    "mixtral": Family({"num_local_experts": 4}),
    "qwen3_moe": Family({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    "olmo2": Family({}),
    "olmoe": Family({"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_neox": Family({}),
    "opt": Family({"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "stablelm": Family({}),
    "cohere": Family({}),
    "granite": Family({}),
    "smollm3": Family({}),
    "gpt_bigcode": Family(_GPT2),
    "gptj": Family({**_GPT2, "rotary_dim": 8}),
    "starcoder2": Family({}),
    "glm4": Family({}),
    "ministral": Family({}),
    "llama4": Family({"num_local_experts": 2}, kind="llama4_text"),
    "gpt_oss": Family({"num_local_experts": 4, "sliding_window": 24}),
    "deepseek_v3": Family(
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "num_key_value_heads": 4,
            "head_dim": 8,
        }
    ),
    "bloom": Family({"n_layer": 4, "n_head": 4}, refused="computes its attention itself"),
    "mpt": Family(
        {"d_model": 64, "n_heads": 4, "n_layers": 4}, refused="computes its attention itself"
    ),
    "mamba": Family({}, refused="0 of 4 layers"),
    "qwen3_next": Family(
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        refused="1 of 4 layers",
    ),
}


def build(name: str, **sizes: Any) -> Any:
    """A random model of a family, in evaluation mode; `sizes` change its configuration.

    Its weights are larger than those of a fresh model: each token depends on many others, and
    logits lie far apart.
    """
    family = FAMILIES[name]
    return random_model(family.kind or name, **{**_SMALL, **family.config, **sizes})


def reference(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """What greedy `generate` gives for each prompt by itself."""
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            x = torch.tensor(prompt)[None]
            out = model.generate(
                x, attention_mask=torch.ones_like(x), max_new_tokens=new, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            found.append(out[0, len(prompt) :].tolist())
    return found


def prompts_of(n: int, shared: int = 24, most: int = 30) -> list[list[int]]:
    """Prompts that begin alike; two are equal, one is a part of another."""
    rng = np.random.default_rng(1)
    system = rng.integers(5, VOCABULARY, shared).tolist()
    lengths = rng.integers(1, most, n)
    found = [system + rng.integers(5, VOCABULARY, k).tolist() for k in lengths]
    return [*found, found[0], found[1][:shared]]
