"""SamplingParams: what each parameter may be."""

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers.sampling import (
    SamplingParams,
    sampling_params,
)

BAD = [
    ("max_new_tokens", 0, ValueError, "max_new_tokens must be >= 1, not 0"),
    ("max_new_tokens", 2.0, TypeError, "max_new_tokens must be an integer, not 2.0"),
    ("max_new_tokens", None, TypeError, "max_new_tokens must be an integer, not None"),
    ("temperature", -0.1, ValueError, "temperature must be >= 0, not -0.1"),
    ("temperature", math.nan, ValueError, "temperature must be a finite number, not nan"),
    ("temperature", math.inf, ValueError, "temperature must be a finite number, not inf"),
    ("temperature", "1", TypeError, "temperature must be a number, not '1'"),
    ("top_k", -1, ValueError, "top_k must be >= 0, not -1"),
    ("top_k", True, TypeError, "top_k must be an integer, not True"),
    ("top_p", 0, ValueError, "top_p must be > 0, not 0.0"),
    ("top_p", 1.01, ValueError, "top_p must be <= 1, not 1.01"),
    ("min_p", -0.01, ValueError, "min_p must be >= 0, not -0.01"),
    ("min_p", 2, ValueError, "min_p must be <= 1, not 2.0"),
    ("repetition_penalty", 0, ValueError, "repetition_penalty must be > 0, not 0.0"),
    ("repetition_penalty", None, TypeError, "repetition_penalty must be a number, not None"),
    ("seed", -1, ValueError, "seed must be >= 0, not -1"),
    ("seed", 2**63, ValueError, "seed must be <= 9223372036854775807, not 9223372036854775808"),
    ("seed", 1.5, TypeError, "seed must be an integer, not 1.5"),
    ("stop", [""], ValueError, "stop must not have a string of zero length"),
    ("stop", "", ValueError, "stop must not have a string of zero length"),
    ("stop", [b"a"], TypeError, "stop must be str, not bytes (position 0): decode it"),
    ("stop", 3, TypeError, "stop must be a str or an iterable of str, not int"),
    ("stop_token_ids", [-1], ValueError, "stop_token_ids must be in [0, 2147483647], not -1"),
    ("stop_token_ids", [2**31], ValueError, "stop_token_ids must be in [0, 2147483647]"),
    ("stop_token_ids", ["a"], TypeError, "stop_token_ids must be"),
    ("ignore_eos", 1, TypeError, "ignore_eos must be True or False, not 1"),
    ("logprobs", -1, ValueError, "logprobs must be >= 0, not -1"),
    ("logprobs", True, TypeError, "logprobs must be an integer, not True"),
    ("n", 0, ValueError, "n must be >= 1, not 0"),
    ("n", 2, ValueError, "n must be 1 at temperature 0, not 2: all samples would be the same"),
]


@pytest.mark.parametrize("name, value, kind, text", BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_a_bad_parameter_is_named(name, value, kind, text):
    with pytest.raises(kind) as error:
        SamplingParams(**{name: value})
    assert str(error.value).startswith(text)


def test_parameters_of_other_kinds_become_plain_ones():
    params = SamplingParams(
        np.int64(3), np.float32(0.5), np.int32(2), 1, stop=["b", "a", "b"], stop_token_ids=[4, 4, 2]
    )
    assert params == SamplingParams(3, 0.5, 2, stop=("b", "a"), stop_token_ids=(4, 2))
    assert hash(params) == hash(dataclasses.replace(params)) and type(params.temperature) is float
    assert SamplingParams(stop_token_ids={5, 3}).stop_token_ids == (3, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_parameters_by_name_or_as_an_object():
    params = SamplingParams(top_k=3)
    assert sampling_params(None, {"top_k": 3}) == sampling_params(params, {}) == params
    for given, options, text in (
        (None, {"topk": 3}, "topk is no sampling parameter: there are max_new_tokens, temper"),
        (params, {"seed": 3}, "give params or seed, not both"),
        ({"top_k": 3}, {}, "params must be a SamplingParams, not {'top_k': 3}"),
    ):
        with pytest.raises(TypeError, match=text):
            sampling_params(given, options)
