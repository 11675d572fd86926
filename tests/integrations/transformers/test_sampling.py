"""Which tokens are kept, as in transformers; how often each comes; on what a token depends."""

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
generation = pytest.importorskip("transformers.generation.logits_process")

from llmds_nb.integrations.transformers import distributions  # noqa: E402
from llmds_nb.integrations.transformers.sampling import (  # noqa: E402
    Sampler,
    SamplingParams,
    Seeds,
)

LOG2_E = math.log2(math.e)


def logits_with_ties(n_rows, n, seed):
    """Logits of every kind that ties: rounded ones, bfloat16 ones, constant rows, masked tokens."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, 3, (n_rows, n)).astype(np.float32))
    x[1::4] = (x[1::4] * 2).round() / 2
    x[2::4] = x[2::4].to(torch.bfloat16).float()
    x[3::8, ::3] = -torch.inf
    x[7::8] = 1.5
    return x


def options_for(n_rows, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return distributions.Options(
        scale=torch.full((n_rows,), LOG2_E / temperature),
        min_p=torch.full((n_rows,), math.log2(min_p) if min_p else -torch.inf),
        cut=torch.full((n_rows,), 1.0 - top_p, dtype=torch.float64),
        top_k=torch.full((n_rows,), top_k),
        has_min_p=min_p > 0,
        has_top_p=top_p < 1,
        most_k=top_k,
    )


def kept(x, **options):
    bits = distributions.weight_bits(x.shape[1])
    found = distributions.filtered(x, x.amax(-1), options_for(len(x), **options), bits)
    assert (found[:, x.shape[1] :] == 0).all()
    return found[:, : x.shape[1]] > 0


# ---- filters against transformers ---------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 300, 3000])
@pytest.mark.parametrize(
    "options, warper",
    [
        *[({"top_k": k}, lambda k=k: generation.TopKLogitsWarper(k)) for k in (1, 2, 40, 299)],
        *[({"top_p": p}, lambda p=p: generation.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.93)],
        *[({"min_p": p}, lambda p=p: generation.MinPLogitsWarper(p)) for p in (0.003, 0.3, 1.0)],
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_kept_tokens_are_those_of_transformers(n, options, warper):
    if options.get("top_k", 0) >= n:
        pytest.skip("all are kept")
    for seed in range(2):
        x = logits_with_ties(16, n, seed)
        for temperature in (0.7, 2.5):
            scaled = generation.TemperatureLogitsWarper(temperature)(None, x)
            theirs = warper()(None, scaled)
            ours = kept(x, temperature=temperature, **options)
            if "top_p" not in options:
                assert torch.equal(theirs > -torch.inf, ours)
                continue
            # Which of equal logits transformers keeps is left to its sort: the values are compared.
            for row, (a, b) in enumerate(zip(theirs > -torch.inf, ours, strict=True)):
                values = [scaled[row][mask].sort(descending=True).values for mask in (a, b)]
                n_both = min(map(len, values))
                assert torch.equal(values[0][:n_both], values[1][:n_both])
                if a.sum() != b.sum():  # its sums of float32 may round to the other side
                    assert abs(a.sum() - b.sum()) == 1
                    exact = x[row].double().div(temperature).sort().values.softmax(-1).cumsum(-1)
                    assert (exact - (1 - options["top_p"])).abs().min() < 1e-6


def test_few_rows_differ_from_transformers_by_rounding():
    """The test above allows one token where sums of float32 round: seldom, not always."""
    x = torch.cat([logits_with_ties(64, 1000, seed) for seed in range(4)])
    x = x[torch.arange(256) % 8 != 7]  # of equal logits, whose sums are multiples of a thousandth
    theirs = generation.TopPLogitsWarper(0.9)(None, x) > -torch.inf
    assert (theirs.sum(-1) != kept(x, top_p=0.9).sum(-1)).sum() <= 2


@pytest.mark.parametrize("top_p", [1e-20, 1e-9, 0.2, 0.9, 0.999])
def test_top_p_keeps_the_smaller_ids_of_equal_logits(top_p):
    x = logits_with_ties(24, 777, 4)
    ours = kept(x, top_p=top_p)
    order = x.sort(dim=-1, descending=True, stable=True).indices
    n_kept = ours.sum(-1, keepdim=True)
    assert torch.equal(ours.gather(1, order), torch.arange(777)[None] < n_kept)
    if top_p < 1e-8:
        assert torch.equal(order[:, 0], x.argmax(-1)) and (n_kept == 1).all()


def test_filters_together_each_among_what_the_one_before_kept():
    x = logits_with_ties(28, 900, 3)[torch.arange(28) % 8 != 7]
    y = generation.TemperatureLogitsWarper(0.8)(None, x)
    y = generation.MinPLogitsWarper(0.02)(None, y)
    y = generation.TopKLogitsWarper(30)(None, y)
    y = generation.TopPLogitsWarper(0.8)(None, y)
    ours = kept(x, temperature=0.8, min_p=0.02, top_k=30, top_p=0.8)
    for row in range(len(x)):
        assert torch.equal(
            x[row][ours[row]].sort().values, x[row][y[row] > -torch.inf].sort().values
        )
    assert 1 < ours.sum(-1).float().mean() < 30


@pytest.mark.parametrize("top_p, n", [(0.5, 512), (0.25, 256), (0.75, 768), (2**-10, 1)])
def test_top_p_of_equal_logits_is_exact(top_p, n):
    ours = kept(torch.full((1, 1024), -7.5), top_p=top_p)
    assert ours[0].nonzero()[:, 0].tolist() == list(range(n))


@pytest.mark.parametrize("n, span", [(1, 1.0), (8, 2.0), (64, 256.0), (4096, 1.0)])
def test_top_p_is_the_same_by_any_buckets(monkeypatch, n, span):
    x = torch.cat([logits_with_ties(24, 2500, 5) * scale for scale in (0.01, 0.3, 1.0, 40.0)])

    def answers():
        return torch.stack([kept(x, top_p=p, top_k=k) for p in (1e-20, 0.1, 0.97) for k in (0, 9)])

    before = answers()
    monkeypatch.setattr(distributions, "N_BUCKETS", n)
    monkeypatch.setattr(distributions, "SPAN", span)
    assert torch.equal(answers(), before)


def test_repetition_penalty_is_that_of_transformers():
    rng = np.random.default_rng(0)
    n, penalties = 500, (1.0, 1.3, 0.6, 1.0)
    sampler = Sampler(n, 6)
    x = torch.from_numpy(rng.normal(0, 1, (4, n)).astype(np.float32))
    histories = [rng.integers(0, n, 400) for _ in penalties]
    for row, (penalty, tokens) in enumerate(zip(penalties, histories, strict=True)):
        params = SamplingParams(repetition_penalty=penalty)
        sampler.set(row + 1, params, 0, tokens)
    for step in range(20):
        tokens = sampler.sample(x, [1, 2, 3, 4], [step] * 4).tokens.tolist()
        for row, (penalty, history) in enumerate(zip(penalties, histories, strict=True)):
            ids = torch.from_numpy(history)[None]
            theirs = generation.RepetitionPenaltyLogitsProcessor(penalty)(ids, x[row : row + 1])
            assert tokens[row] == theirs.argmax()
            histories[row] = np.append(history, tokens[row])
    assert len(set(histories[1][-20:].tolist())) > 1


# ---- draws --------------------------------------------------------------------------------------


def test_weights_are_probabilities():
    x = logits_with_ties(16, 1000, 1)
    found = distributions.weights(x, x.amax(-1), options_for(16, temperature=0.9), 44)[:, :1000]
    true = (x.double() / 0.9).softmax(-1)
    assert torch.allclose(found.double() / found.sum(-1, keepdim=True), true, rtol=2e-6, atol=1e-12)
    assert (found.amax(-1) == 1 << 44).all()


def test_the_sum_of_the_weights_of_any_vocabulary_fits():
    for n in (1, 2, 50_257, 262_144, 262_208, 2**24, 2**31 - 1):
        assert n << distributions.weight_bits(n) < 2**63


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}])
def test_each_token_comes_as_often_as_its_probability_says(options):
    n, draws, temperature = 300, 40_000, 1.4
    x = torch.linspace(-3, 3, n)[torch.from_numpy(np.random.default_rng(2).permutation(n))]
    params = SamplingParams(temperature=temperature, **options)
    sampler = Sampler(n, 400)
    tokens = []
    for row in range(400):
        sampler.set(row, params, row * 11, [])
    for position in range(draws // 400):
        rows = np.arange(400)
        tokens.append(sampler.sample(x.expand(400, n), rows, np.full(400, position)).tokens)
    counts = np.bincount(torch.cat(tokens).numpy(), minlength=n)
    expected = (x.double() / temperature).softmax(-1)
    expected = expected.where(kept(x[None], temperature=temperature, **options)[0], 0)
    expected = (expected / expected.sum() * draws).numpy()
    assert (counts[expected == 0] == 0).all()
    many = expected > 5
    squares = ((counts - expected)[many] ** 2 / expected[many]).sum()
    freedom = many.sum() - 1
    # five standard deviations of a chi-square with so many degrees of freedom; the seed is fixed
    assert abs(squares - freedom) < 5 * math.sqrt(2 * freedom)


def test_random_numbers_are_those_of_plain_integers():
    seeds, positions = [0, 1, 2**63 - 1, 12345], [0, 7, 2**31, 99]
    numbers = distributions.uniform(torch.tensor(seeds), torch.tensor(positions)).tolist()
    for seed, position, number in zip(seeds, positions, numbers, strict=True):
        key = distributions.hashed(seed) + (position + 1) * 0x9E3779B97F4A7C15
        assert number == (distributions.hashed(key) >> 11) / 2**53
    # Steele et al.: SplitMix64 of seed 0 begins with these (Vigna's splitmix64.c)
    golden = 0x9E3779B97F4A7C15
    assert distributions.hashed(golden) == 0xE220A8397B1DCDAF
    assert distributions.hashed(2 * golden) == 0x6E789E6AA1B965F4


def test_random_numbers_of_neighbouring_seeds_and_positions_are_independent():
    seeds, positions = (g.ravel() for g in np.meshgrid(np.arange(300), np.arange(300)))
    numbers = distributions.uniform(torch.from_numpy(seeds), torch.from_numpy(positions)).numpy()
    grid = numbers.reshape(300, 300)
    assert len(np.unique(numbers)) == numbers.size and 0 <= numbers.min() <= numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / math.sqrt(12 * numbers.size)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)
    counts = np.histogram(numbers, 256, (0, 1))[0]
    squares = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(squares - 255) < 5 * math.sqrt(2 * 255)


def test_a_number_of_one_end_or_the_other_takes_the_first_or_last_kept_token():
    x = torch.full((2, 600), -torch.inf)
    x[0, [260, 300, 597]] = x[1, [5, 300, 511]] = 0.0
    found = distributions.filtered(x, x.amax(-1), options_for(2), 44)
    for number, tokens in ((0.0, [260, 5]), (1 - 2.0**-53, [597, 511])):
        numbers = torch.tensor([number, number], dtype=torch.float64)
        assert distributions.drawn(found, numbers).tolist() == tokens


# ---- on what a token depends --------------------------------------------------------------------

MIXED = [
    SamplingParams(),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.6, top_k=20),
    SamplingParams(temperature=1.1, top_p=0.9),
    SamplingParams(temperature=1.1, top_p=0.4, repetition_penalty=1.2),
    SamplingParams(temperature=2.0, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.8, min_p=0.01, logprobs=2),
    SamplingParams(repetition_penalty=1.5, logprobs=0),
]


def sampler_of(requests, n, order):
    sampler = Sampler(n, len(requests) + 3)
    for place, request in enumerate(order):
        sampler.set(place, requests[request], request, [request % n, 3])
    return sampler


@pytest.mark.parametrize("n, scale", [(33, 2.0), (1000, 3.0), (5003, 0.3)])
def test_a_token_depends_on_its_own_row_only(n, scale, monkeypatch):
    requests = [MIXED[i % len(MIXED)] for i in range(64)]
    x = logits_with_ties(64, n, 8) * scale
    alone = []
    for request in range(64):
        sampler = sampler_of(requests, n, [request])
        alone.append(int(sampler.sample(x[request : request + 1], [0], [request]).tokens))
    rng = np.random.default_rng(0)
    for size in (2, 3, 17, 64):
        for entries in (n, 5 * n, 1 << 24):
            monkeypatch.setattr("llmds_nb.integrations.transformers.sampling.CPU_ENTRIES", entries)
            order = rng.permutation(64)[:size]
            sampler = sampler_of(requests, n, order.tolist())
            places = rng.permutation(size)
            # a view with an offset of its own, so that other loads are aligned
            room = torch.empty(size * n + 1)[1:].view(size, n)
            room.copy_(x[order[places]])
            tokens = sampler.sample(room, places, order[places]).tokens.tolist()
            assert tokens == [alone[i] for i in order[places]]
    assert len(set(alone)) > 10


def test_the_same_tokens_of_another_number_of_threads():
    x = logits_with_ties(8, 70_000, 8)
    requests = [MIXED[i] for i in range(8)]
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sampler = sampler_of(requests, 70_000, range(8))
            answers.append(sampler.sample(x, range(8), range(8)).tokens.tolist())
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_tokens():
    requests = [MIXED[i % len(MIXED)] for i in range(64)]
    x = logits_with_ties(64, 5003, 8)
    answers = []
    for device in ("cpu", "cuda"):
        sampler = Sampler(5003, 64, device)
        for row, params in enumerate(requests):
            sampler.set(row, params, row, [row, 3])
        steps = [sampler.sample(x.to(device), range(64), [i] * 64) for i in range(4)]
        answers.append([found.tokens.tolist() for found in steps])
    assert answers[0] == answers[1]


def test_a_request_set_again_in_another_row_goes_on_as_before():
    n = 200
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(0, 2, (12, n)).astype(np.float32))
    params = SamplingParams(temperature=1.0, repetition_penalty=1.3, top_p=0.9)

    def run(moves):
        sampler, tokens, row = Sampler(n, 4), [5, 6], 0
        sampler.set(row, params, 9, tokens)
        for step in range(12):
            if step in moves:  # preempted, then admitted again
                sampler.release(row)
                row = moves[step]
                sampler.set(row, params, 9, tokens)
            tokens.append(int(sampler.sample(x[step : step + 1], [row], [step]).tokens))
        return tokens

    assert run({}) == run({3: 2, 4: 0, 9: 0}) == run({5: 3})


def test_seeds():
    params = SamplingParams(temperature=1.0)
    assert [Seeds(3).of(params)] * 2 == [Seeds(3).of(params) for _ in range(2)]
    one, other = Seeds(3), Seeds()
    drawn = [one.of(params) for _ in range(50)] + [other.of(params) for _ in range(50)]
    assert len(set(drawn)) == 100 and all(0 <= seed < 2**63 for seed in drawn)
    assert Seeds(3).of(dataclasses.replace(params, seed=8)) == 8
    copies = [distributions.derived_seed(seed, i) for seed in (8, 9) for i in range(200)]
    assert copies[0] == 8 and copies[200] == 9
    assert len(set(copies)) == 400 and all(0 <= seed < 2**63 for seed in copies)


# ---- logits that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("params", MIXED, ids=str)
def test_rows_with_bad_logits_are_told_and_the_others_are_as_before(params):
    n = 700
    x = logits_with_ties(12, n, 6)
    sampler = Sampler(n, 12)
    for row in range(12):
        sampler.set(row, params, row, [1])
    good = sampler.sample(x, range(12), range(12))
    assert not good.bad.any()
    y = x.clone()
    y[2, 5] = y[11] = torch.nan
    y[4] = -torch.inf
    y[6, 8] = torch.inf
    for row in range(12):
        sampler.set(row, params, row, [1])
    found = sampler.sample(y, range(12), range(12))
    assert found.bad.nonzero()[:, 0].tolist() == [2, 4, 6, 11]
    assert torch.equal(found.tokens[~found.bad], good.tokens[~found.bad])
    assert (found.tokens >= 0).all() and (found.tokens < n).all()


def test_parameters_at_the_ends_of_their_ranges():
    n = 300
    x = logits_with_ties(8, n, 3)[[0, 4, 3]]
    extreme = [
        SamplingParams(temperature=1e-300),
        SamplingParams(temperature=5e-324, top_p=5e-324, min_p=5e-324, top_k=2**31 - 1),
        SamplingParams(temperature=1e308),
        SamplingParams(temperature=1.0, top_p=1 - 2**-53, min_p=1.0),
        SamplingParams(temperature=1.0, seed=2**63 - 1),
    ]
    for params in extreme:
        sampler = Sampler(n, 3)
        for row in range(3):
            sampler.set(row, params, 2**63 - 1, [])
        found = sampler.sample(x, range(3), [2**31 - 2] * 3)
        assert not found.bad.any()
        assert torch.isfinite(x.gather(1, found.tokens[:, None])).all()
        if params.temperature < 1e-9 or params.min_p == 1:
            assert torch.equal(found.tokens, x.argmax(-1))
    for penalty in (1e-300, 1e300):  # beyond float32
        sampler = Sampler(n, 1)
        sampler.set(0, SamplingParams(repetition_penalty=penalty), 0, range(n))
        assert sampler.sample(x[:1] - 100, [0], [0]).bad.item() == (penalty > 1)
        assert sampler.sample(x[:1] + 100, [0], [0]).bad.item() == (penalty < 1)


# ---- log probabilities --------------------------------------------------------------------------


def test_logprobs_are_of_the_unmodified_distribution():
    n = 900
    x = logits_with_ties(8, n, 2)
    sampler = Sampler(n, 8)
    for row in range(8):
        wanted = None if row == 3 else row
        params = SamplingParams(
            temperature=0.3, top_k=4, repetition_penalty=2.0, logprobs=wanted, seed=1
        )
        sampler.set(row, params, 1, [0, 1, 2])
    tokens, _, logprobs = sampler.sample(x, range(8), range(8))
    true = x.log_softmax(-1)
    assert logprobs.top_ids.shape == (8, 7)
    assert torch.allclose(logprobs.sampled, true.gather(1, tokens[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(logprobs.top, true.gather(1, logprobs.top_ids), atol=1e-5)
    order = np.lexsort((np.arange(n)[None].repeat(8, 0), -x.numpy()), axis=-1)[:, :7]
    np.testing.assert_array_equal(logprobs.top_ids, order)


def test_no_logprobs_where_no_row_reports_them():
    sampler = Sampler(10, 2)
    sampler.set(0, SamplingParams(temperature=1.0), 0, [])
    sampler.set(1, SamplingParams(logprobs=0), 0, [])
    x = torch.zeros(1, 10)
    assert sampler.sample(x, [0], [0]).logprobs is None
    assert sampler.sample(x, [1], [0]).logprobs.top_ids.shape == (1, 0)


# ---- cost ---------------------------------------------------------------------------------------


def test_greedy_rows_take_the_first_maximum_and_nothing_else(monkeypatch):
    sampler = Sampler(50, 4)
    for row in range(4):
        sampler.set(row, SamplingParams(stop=["x"], top_k=3), 0, [])
    monkeypatch.setattr(sampler, "_sample", None)
    x = torch.zeros(4, 50, dtype=torch.bfloat16)
    x[1, [7, 30]] = 1
    assert sampler.is_plain(np.arange(4))
    found = sampler.sample(x, np.array([3, 0, 1, 2]), None)
    assert found.tokens.tolist() == [0, 7, 0, 0]


def test_the_tokens_seen_are_held_while_a_penalty_needs_them():
    sampler = Sampler(1000, 4)
    before = sampler.nbytes
    sampler.set(0, SamplingParams(temperature=1.0), 0, [1])
    assert sampler.nbytes == before
    sampler.set(1, SamplingParams(repetition_penalty=1.2), 0, [1])
    sampler.set(2, SamplingParams(repetition_penalty=1.2), 0, [1])
    assert sampler.nbytes == before + 4000
    sampler.release(1)
    assert sampler.nbytes == before + 4000
    sampler.set(3, SamplingParams(), 0, [1])
    assert sampler.nbytes == before + 4000
    sampler.set(2, SamplingParams(), 0, [1])
    assert sampler.nbytes == before


def test_logits_with_a_gradient_and_in_inference_mode():
    sampler = Sampler(20, 1)
    params = SamplingParams(temperature=1.0, repetition_penalty=1.1)
    x = torch.linspace(0, 1, 20)[None]
    with torch.inference_mode():
        sampler.set(0, params, 0, [1])
        inside = sampler.sample(x, [0], [0]).tokens.tolist()
    sampler.set(0, params, 0, [1])
    assert sampler.sample(x.requires_grad_(), [0], [0]).tokens.tolist() == inside


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda s: s.set(2, SamplingParams(), 0, []), "row must be <= 1, not 2"),
        (lambda s: s.set(0, SamplingParams(), -1, []), "seed must be >= 0, not -1"),
        (lambda s: s.set(0, SamplingParams(logprobs=10), 0, []), "logprobs must be at most 9, "),
        (lambda s: s.set(0, SamplingParams(stop_token_ids=[9]), 0, []), "stop_token_ids must be b"),
        (
            lambda s: s.set(0, SamplingParams(repetition_penalty=2), 0, [0, 9]),
            "tokens must be in [0, 8], not 9",
        ),
        (lambda s: s.sample(torch.zeros(1, 10), [0], [0]), "logits must have shape [S, 9], not [1"),
        (lambda s: s.sample(torch.zeros(9), [0], [0]), "logits must have shape [S, 9], not [9]"),
        (lambda s: s.sample(torch.zeros(2, 9), [0], [0]), "rows has 1 entries, but logits has 2"),
        (lambda s: s.release(-1), "row must be >= 0, not -1"),
        (lambda s: Sampler(0, 1), "vocab_size must be >= 1, not 0"),
        (lambda s: Sampler(1, 0), "max_running must be >= 1, not 0"),
    ],
)
def test_a_bad_call_is_refused(call, text):
    sampler = Sampler(9, 2)
    with pytest.raises(ValueError) as error:
        call(sampler)
    assert str(error.value).startswith(text)
