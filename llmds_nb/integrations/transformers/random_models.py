"""Small random models and a tokenizer of bytes, made without a download."""

import warnings
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

__all__ = ["KINDS", "byte_tokenizer", "random_model"]

KINDS = ("llama", "qwen3", "gpt2")
_SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
# The same by the names of GPT-2, whose feed-forward layers are four times as wide as the others.
_GPT2 = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": None,
    "num_key_value_heads": None,
}  # fmt: skip
_SPREAD = 2.0


def random_model(kind: str = "llama", *, seed: int = 0, **sizes: Any) -> Any:
    """A random decoder model, float32 on the CPU, in evaluation mode.

    Its weights are larger than those that training starts from: each token depends on many others,
    and logits lie far apart, so that greedy tokens are the same by all exact ways to compute them.
    No token ends a sequence. The state of torch's random numbers is left as it was.

    Parameters
    ----------
    kind : str
        "llama", "qwen3", "gpt2", or another model type of transformers.
    seed : int
        Of the weights.
    sizes
        Fields of the configuration. Default: 4 layers 64 wide, 4 heads of 16, 2 of them for keys
        and values, 512 tokens in the vocabulary, 4,096 positions.

    Returns
    -------
    PreTrainedModel

    Raises
    ------
    ValueError
        A kind that transformers does not have as a decoder.

    Examples
    --------
    >>> model = random_model("llama", hidden_size=32)
    >>> type(model).__name__, model.config.hidden_size
    ('LlamaForCausalLM', 32)
    """
    given = {**_SIZES, **sizes}
    if kind == "gpt2":
        named = [(_GPT2.get(name, name), value) for name, value in given.items()]
        given = {name: value for name, value in named if name is not None}
    elif "head_dim" not in given:
        given["head_dim"] = given["hidden_size"] // given["num_attention_heads"]
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            if (
                kind not in CONFIG_MAPPING
                or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING
            ):
                raise ValueError(f"kind must be that of a decoder of transformers, not {kind!r}")
            config = AutoConfig.for_model(kind, **given)
            model = AutoModelForCausalLM.from_config(config).eval().float()
    finally:
        transformers.logging.set_verbosity(verbosity)
    random = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            scale = _SPREAD * parameter.shape[-1] ** -0.5
            parameter.data.normal_(0.0, scale, generator=random)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the bytes of UTF-8: 256 of them, for any model.

    Examples
    --------
    >>> tokenizer = byte_tokenizer()
    >>> tokenizer("café")["input_ids"]
    [99, 97, 102, 195, 169]
    >>> tokenizer.decode([99, 97, 102, 195, 169])
    'café'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # ByteLevel writes a byte as the character of this code where it is printed, the others as
    # characters from 256 on.
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printed else next(others)) for byte in range(256)]
    vocabulary = {letter: byte for byte, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)
