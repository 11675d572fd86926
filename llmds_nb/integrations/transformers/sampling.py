"""SamplingParams: how the tokens of a request are chosen; Sampler: chooses those of a step."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmds_nb._core import validation
from llmds_nb._core.typing import ArrayLike, Int64s
from llmds_nb._core.validation import shown

from . import distributions
from .distributions import Options, derived_seed, hashed

MAX_COPIES = 1024
INT32_MAX = 2**31 - 1
# Entries of logits that are filtered at a time: what the caches of a core, or a GPU's memory, hold.
CPU_ENTRIES = 1 << 18
GPU_ENTRIES = 1 << 24


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a request are chosen, and when it ends.

    Parameters
    ----------
    max_new_tokens : int, >= 1
        How many tokens are generated at most.
    temperature : float, >= 0
        0 takes the most probable token (greedy), 1 samples from the model's distribution.
    top_k : int, >= 0
        Sample among the `top_k` most probable tokens and those equally probable as the last of
        them; 0 (or the size of the vocabulary, or more): all.
    top_p : float in (0, 1]
        Sample among the fewest tokens whose probabilities sum to `top_p` (nucleus sampling).
    min_p : float in [0, 1]
        Sample among the tokens at least `min_p` times as probable as the most probable one.
    repetition_penalty : float, > 0
        Above 1 makes the tokens of the prompt and those generated less probable: their logits are
        divided by it, negative ones multiplied.
    seed : int in [0, 2**63 - 1], optional
        The same seed gives the same tokens, whatever else runs. Default: one of its own for each
        request, drawn from the engine's seed.
    stop : str or sequence of str
        The request ends when its text has one of these; the text ends before it, the tokens stay.
    stop_token_ids : sequence of int in [0, 2**31 - 1]
        The request ends when one of these is sampled, which is its last token.
    ignore_eos : bool
        Whether the model's own end-of-sequence tokens do not end the request.
    logprobs : int, >= 0, optional
        Report the natural logarithm of each token's probability, and of so many most probable
        tokens: of the model's distribution before penalty, temperature and filters, as vLLM and
        OpenAI's API do.
    n : int in [1, 1024]
        How many samples of the same prompt; the first is that of `n=1`. They would be equal at
        temperature 0, which is refused.

    Raises
    ------
    ValueError, TypeError
        For a value out of its range or of another kind, with its name.

    Notes
    -----
    Order: repetition penalty, temperature, min-p, top-k, top-p, each among the tokens that the one
    before it kept, as in vLLM. (transformers has min-p last: with top-p and min-p together it may
    keep more tokens.)

    Examples
    --------
    >>> from llmds_nb.integrations.transformers.sampling import SamplingParams
    >>> SamplingParams(temperature=0.8, top_p=0.95, seed=7, stop="END").stop
    ('END',)
    >>> SamplingParams(top_p=0)
    Traceback (most recent call last):
    ...
    ValueError: top_p must be > 0, not 0.0
    """

    max_new_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        integer, real = validation.integer, validation.real
        checked: dict[str, Any] = {
            "max_new_tokens": integer(self.max_new_tokens, "max_new_tokens", low=1, high=INT32_MAX),
            "temperature": real(self.temperature, "temperature", low=0),
            "top_k": integer(self.top_k, "top_k", low=0, high=INT32_MAX),
            "top_p": real(self.top_p, "top_p", above=0, high=1),
            "min_p": real(self.min_p, "min_p", low=0, high=1),
            "repetition_penalty": real(self.repetition_penalty, "repetition_penalty", above=0),
            "seed": None if self.seed is None else validation.natural(self.seed, "seed"),
            "stop": _stop_strings(self.stop),
            "stop_token_ids": _stop_tokens(self.stop_token_ids),
            "ignore_eos": validation.flag(self.ignore_eos, "ignore_eos"),
            "n": integer(self.n, "n", low=1, high=MAX_COPIES),
        }
        if self.logprobs is not None:
            checked["logprobs"] = integer(self.logprobs, "logprobs", low=0, high=INT32_MAX)
        if checked["n"] > 1 and checked["temperature"] == 0:
            text = f"n must be 1 at temperature 0, not {self.n}: all samples would be the same"
            raise ValueError(text)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether each token is the most probable one."""
        return self.temperature == 0


def sampling_params(params: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
    """`params`, or those of `options` by name; TypeError for both, or for a name unknown."""
    if params is None:
        known = [field.name for field in fields(SamplingParams)]
        for name in options:
            if name not in known:
                text = f"{name} is no sampling parameter: there are {', '.join(known)}"
                raise TypeError(text)
        return SamplingParams(**options)
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params must be a SamplingParams, not {shown(params)}")
    if options:
        text = f"give params or {', '.join(options)}, not both: dataclasses.replace makes another"
        raise TypeError(text)
    return params


def _stop_strings(values) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(validation.texts(values, "stop")))
    if "" in found:
        raise ValueError("stop must not have a string of zero length: it would stop at once")
    return found


def _stop_tokens(values) -> tuple[int, ...]:
    if isinstance(values, set | frozenset):
        values = sorted(values)
    ids = validation.integers(values, "stop_token_ids", high=INT32_MAX)
    return tuple(dict.fromkeys(ids.tolist()))


class Seeds:
    """Seeds for the requests that have none: the same sequence for the same seed.

    Parameters
    ----------
    seed : int in [0, 2**63 - 1], optional
        None: from the operating system's random numbers.

    Examples
    --------
    >>> from llmds_nb.integrations.transformers.sampling import Seeds, SamplingParams
    >>> seeds = Seeds(0)
    >>> seeds.of(SamplingParams(seed=7))
    7
    >>> seeds.of(SamplingParams()) == Seeds(0).of(SamplingParams())
    True
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little") >> 1
        self._seed = hashed(validation.natural(seed, "seed"))
        self._drawn = 0

    def of(self, params: SamplingParams) -> int:
        """The seed of a request: its own, or the next one."""
        if params.seed is not None:
            return params.seed
        self._drawn += 1
        return derived_seed(self._seed, self._drawn)


class LogProbs(NamedTuple):
    """Natural logarithms of probabilities before penalty, temperature and filters."""

    sampled: Tensor  # float32[S]: of the sampled token
    top_ids: Tensor  # int64[S, n]: the most probable tokens, the smaller id first among equals
    top: Tensor  # float32[S, n]: theirs; n is the most that a row of the step reports


class Sampled(NamedTuple):
    """The tokens of a step."""

    tokens: Tensor  # int64[S]; 0 where `bad`
    bad: Tensor  # bool[S]: the logits have NaN or infinity, or are all -infinity
    logprobs: LogProbs | None  # None where no row reports them


class Sampler:
    """Chooses the next token of each row of a step.

    Parameters
    ----------
    vocab_size : int
        How many logits a row has.
    max_running : int
        How many rows there are: those of `StepPlan.rows`.
    device : torch.device or str
        Where the logits are.

    Notes
    -----
    A row's token depends only on its own logits, tokens, parameters, seed and position, bit for
    bit: not on the other rows, their order, or the device. See `distributions`.

    Where every row of a step is greedy, without penalty or logprobs, sampling is one maximum.
    Otherwise O(vocab_size) a row in about 30 passes, and a sort or a selection for top-k and
    top-p. Tokens seen, for the penalty, take max_running * vocab_size bytes from the first request
    with a penalty until the rows of all such requests were released or set to others.

    Examples
    --------
    >>> import torch
    >>> from llmds_nb.integrations.transformers.sampling import Sampler, SamplingParams
    >>> sampler = Sampler(vocab_size=4, max_running=2)
    >>> sampler.set(0, SamplingParams(), seed=0, tokens=[3, 1])
    >>> sampler.set(1, SamplingParams(temperature=1.0, top_k=1), seed=5, tokens=[3, 1])
    >>> logits = torch.tensor([[0.0, 1.0, 3.0, 2.0], [9.0, 1.0, 3.0, 2.0]])
    >>> sampler.sample(logits, rows=[0, 1], positions=[0, 0]).tokens
    tensor([2, 0])
    """

    def __init__(
        self, vocab_size: int, max_running: int, device: torch.device | str = "cpu"
    ) -> None:
        self._n = validation.integer(vocab_size, "vocab_size", low=1, high=INT32_MAX)
        self._n_rows = validation.integer(max_running, "max_running", low=1, high=INT32_MAX)
        self._device = torch.device(device)
        self._bits = distributions.weight_bits(self._n)
        # What the host decides by; the device has the rest.
        self._plain = np.ones(self._n_rows, np.bool_)  # greedy, without penalty or logprobs
        self._random, self._penalized, self._min_p, self._top_p = (
            np.zeros(self._n_rows, np.bool_) for _ in range(4)
        )
        self._top_k = np.zeros(self._n_rows, np.int64)
        self._n_logprobs = np.full(self._n_rows, -1, np.int64)
        # One table, so that one copy brings it to the device: two columns of int64, four of float64
        self._host = np.zeros((self._n_rows, 6), np.int64)
        self._host[:, 2:].view(np.float64)[:] = 0.0, -math.inf, 0.0, 1.0
        shared = torch.from_numpy(self._host)
        self._table = shared if self._device.type == "cpu" else shared.to(self._device)
        self._changed = False
        self._seen: Tensor | None = None  # bool[max_running, vocab_size]

    def __repr__(self) -> str:
        return f"Sampler(vocab_size={self._n}, max_running={self._n_rows}, device={self._device})"

    @property
    def nbytes(self) -> int:
        """Bytes on the device, without the temporary ones of `sample`."""
        return self._host.nbytes + (0 if self._seen is None else self._seen.numel())

    def check(self, params: SamplingParams) -> None:
        """Raise ValueError where the parameters do not fit the vocabulary."""
        if params.logprobs is not None and params.logprobs > self._n:
            text = f"logprobs must be at most {self._n}, the size of the vocabulary"
            raise ValueError(f"{text}, not {params.logprobs}")
        for token in params.stop_token_ids:
            if token >= self._n:
                text = f"stop_token_ids must be below {self._n}, the size of the vocabulary"
                raise ValueError(f"{text}, not {token}")

    def set(self, row: int, params: SamplingParams, seed: int, tokens: ArrayLike) -> None:
        """Let a row belong to a request, which starts to run, or does again.

        Parameters
        ----------
        row : int
            Of StepPlan.rows.
        params : SamplingParams
            How its tokens are chosen.
        seed : int in [0, 2**63 - 1]
            Of its random numbers.
        tokens : int array [n]
            All it has so far, of the prompt and generated; read only for a repetition penalty.
        """
        row = validation.integer(row, "row", low=0, high=self._n_rows - 1)
        seed = validation.natural(seed, "seed")
        self.check(params)
        penalized = params.repetition_penalty != 1
        if penalized:
            ids = validation.integers(tokens, "tokens", high=self._n - 1)
            if self._seen is None:
                shape = self._n_rows, self._n
                with torch.inference_mode(False):  # one made within it cannot be written outside
                    self._seen = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._seen[row] = False
            self._seen[row, torch.from_numpy(ids).to(self._device)] = True
        top_k = params.top_k if params.top_k < self._n else 0
        self._random[row] = not params.greedy
        self._penalized[row] = penalized
        self._min_p[row] = params.min_p > 0
        self._top_p[row] = params.top_p < 1
        self._top_k[row] = 0 if params.greedy else top_k
        self._n_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self._plain[row] = params.greedy and not penalized and params.logprobs is None
        self._host[row, :2] = seed, top_k
        self._host[row, 2:].view(np.float64)[:] = (
            min(math.log2(math.e) / max(params.temperature, 1e-300), 1e30),
            math.log2(params.min_p) if params.min_p else -math.inf,
            1.0 - params.top_p,
            params.repetition_penalty,
        )
        self._changed = True
        self._forget()

    def release(self, row: int) -> None:
        """A row's request has ended or was preempted. Frees the tokens seen after the last."""
        row = validation.integer(row, "row", low=0, high=self._n_rows - 1)
        self._penalized[row] = self._random[row] = False
        self._plain[row] = True
        self._n_logprobs[row] = -1
        self._forget()

    def _forget(self):
        """Free the tokens seen where no row has a penalty."""
        if self._seen is not None and not self._penalized.any():
            self._seen = None

    def is_plain(self, rows: ArrayLike) -> bool:
        """Whether sampling these rows is only argmax: such a step may have it in its graph."""
        return bool(self._plain[np.asarray(rows)].all())

    def sample(self, logits: Tensor, rows: ArrayLike, positions: ArrayLike) -> Sampled:
        """The next token of each row; the tokens are counted as seen.

        Parameters
        ----------
        logits : float Tensor [S, vocab_size]
            On the device; not changed.
        rows : int array [S], on the host
            Those of StepPlan.rows that sample; distinct.
        positions : int array [S], on the host
            How many tokens the request of each has generated so far.

        Returns
        -------
        Sampled
            tokens, bad, logprobs: on the device; the host does not wait for them, but where a
            row has top-p.
        """
        if logits.ndim != 2 or logits.shape[1] != self._n:
            text = f"logits must have shape [S, {self._n}], not {list(logits.shape)}"
            raise ValueError(text)
        rows = np.asarray(rows, np.int64)
        if len(rows) != len(logits):
            raise ValueError(f"rows has {len(rows)} entries, but logits has {len(logits)}")
        if self._plain[rows].all():
            best, tokens = logits.max(-1)
            return Sampled(tokens, _bad(best), None)
        with torch.no_grad():
            return self._sample(logits.float(), rows, np.asarray(positions, np.int64))

    def _sample(self, logits: Tensor, rows: Int64s, positions: Int64s) -> Sampled:
        if self._changed and self._device.type != "cpu":
            self._table.copy_(torch.from_numpy(self._host))
        self._changed = False
        index = torch.from_numpy(rows).to(self._device)
        settings = self._table[index]
        best, tokens = logits.max(-1)
        bad = _bad(best)
        x = logits
        penalized = self._penalized[rows].any()
        if penalized:
            x = self._penalize(logits, index, settings)
            best, tokens = x.max(-1)
            bad |= _bad(best)  # a penalty near 0 or infinity makes infinite what was not
        random = np.flatnonzero(self._random[rows])
        if random.size == rows.size:
            tokens = self._draw(x, best, settings, rows, positions)
        elif random.size:
            at = torch.from_numpy(random).to(self._device)
            drawn = self._draw(x[at], best[at], settings[at], rows[random], positions[random])
            tokens = tokens.index_copy(0, at, drawn)
        tokens.masked_fill_(bad, 0)
        if penalized:
            assert self._seen is not None
            self._seen[index, tokens] = True  # of rows without a penalty nobody reads it
        logprobs = None
        n_most = int(self._n_logprobs[rows].max())
        if n_most >= 0:
            logprobs = self._logprobs(logits, tokens, n_most)
        return Sampled(tokens, bad, logprobs)

    def _penalize(self, logits, index, settings):
        penalty = settings[:, 5:].view(torch.float64).to(torch.float32)
        less = torch.where(logits < 0, logits * penalty, logits / penalty)
        # The whole row is set to the penalty of a request that has none: 1 changes nothing.
        return torch.where(self._seen[index], less, logits)

    def _draw(self, x, best, settings, rows, positions):
        """A token of each row's filtered distribution, a block of rows at a time."""
        numbers = distributions.uniform(
            settings[:, 0], torch.from_numpy(positions).to(self._device)
        )
        reals = settings[:, 2:].view(torch.float64)
        options = Options(
            scale=reals[:, 0].to(torch.float32),
            min_p=reals[:, 1].to(torch.float32),
            cut=reals[:, 2],
            top_k=settings[:, 1],
            has_min_p=bool(self._min_p[rows].any()),
            has_top_p=bool(self._top_p[rows].any()),
            most_k=int(self._top_k[rows].max()),
        )
        entries = CPU_ENTRIES if self._device.type == "cpu" else GPU_ENTRIES
        step = max(1, entries // self._n)
        parts = []
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            found = distributions.filtered(x[part], best[part], options.of(part), self._bits)
            parts.append(distributions.drawn(found, numbers[part]))
        return torch.cat(parts)

    def _logprobs(self, logits, tokens, n):
        log_total = logits.logsumexp(-1, keepdim=True)
        sampled = logits.gather(1, tokens[:, None]) - log_total
        top_ids = _largest_ids(logits, n)
        return LogProbs(sampled[:, 0], top_ids, logits.gather(1, top_ids) - log_total)


def _bad(best):
    """Whether the maximum of a row is NaN or infinite."""
    return (best.abs() < math.inf).logical_not_()


def _largest_ids(logits, n):
    """Ids of the n largest logits of each row, the smaller id first among equals."""
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ INT32_MAX, bits).to(torch.int64)
    ids = torch.arange(logits.shape[1], device=logits.device)
    keys = (ordered << 32) + (INT32_MAX - ids)
    return INT32_MAX - (keys.topk(n, dim=-1).values & INT32_MAX)
