"""The plain-Python oracle of ContinuousBatcher: lists, every queue sorted whole.

It drives a KVCache of its own, one sequence at a time. It shares only the kernel `pages_missing`
with the batcher, which has a test of its own.
"""

from llmds_nb import CapacityError
from llmds_nb.kv.kernels.state import QUOTA
from llmds_nb.primitives.status import ABSENT
from llmds_nb.scheduling.kernels.sequence_pages import pages_missing

MS = 10**6


class PlainBatcher:
    def __init__(self, cache, max_running, budget, policy, start, max_hold_steps=16):
        self.cache, self.max_running, self.budget = cache, max_running, budget
        self.policy, self.start, self.now = policy, start, start
        self.waiting, self.running, self.plan, self.lost = [], [], {}, []
        self.counter, self.last = {}, None
        self.n = self.n_preempted = self.n_held = self.n_came = 0
        self.undelivered = {}  # by id the token that the request has, but is not told of yet
        self.max_hold_steps = max_hold_steps

    def tick(self, now):
        self.now = max(self.now, now)

    def submit(self, prompt, max_new, salt, slo_ms, priority, tenant, request_id=None, stop=()):
        live = [r["id"] for r in self.waiting + self.running]
        while request_id is None and (self.n in self.cache or self.n in live):
            self.n += 1
        id_ = self.n if request_id is None else request_id
        assert id_ not in self.cache and id_ not in live
        request = {
            "id": id_,
            "came": self.n_came,
            "stop": set(stop),
            "tokens": list(prompt),
            "prompt": len(prompt),
            "left": max_new,
            "salt": salt,
            "priority": priority,
            "tenant": tenant,
            "arrival": self.now,
            "deadline": self.now + int(slo_ms * MS),
            "computed": 0,
            "charged": 0,
            "held": 0,
        }
        self.n += id_ == self.n
        self.n_came += 1
        self.enter(request)
        return request["id"]

    def enter(self, request):
        tenant = request["tenant"]
        active = {r["tenant"] for r in self.waiting}
        self.counter.setdefault(tenant, 0)
        if tenant not in active:
            floor = min((self.counter[t] for t in active), default=self.counter.get(self.last, 0))
            self.counter[tenant] = max(self.counter[tenant], floor)
        self.waiting.append(request)

    def leave(self, request):
        self.waiting.remove(request)
        if all(r["tenant"] != request["tenant"] for r in self.waiting):
            self.last = request["tenant"]

    def key(self, r):
        since = float(r["arrival"] - self.start)
        return {
            "fcfs": 0,
            "shortest": r["prompt"],
            "slo": r["deadline"],
            "aging": 0.02 * MS * r["prompt"] + 0.02 * since,
            "fair": (self.counter[r["tenant"]], list(self.counter).index(r["tenant"])),
        }[self.policy]

    def step(self):
        budget, self.plan = self.budget, {}
        for wants_prefill in (False, True):
            for r in self.running:
                left = len(r["tokens"]) - r["computed"]
                if (left > 1) == wants_prefill and budget:
                    self.plan[r["id"]] = min(left, budget)
                    budget -= self.plan[r["id"]]
        blocked, alone, held = set(), [], []  # salts, requests
        while budget and len(self.running) < self.max_running:
            there = [r for r in self.waiting if r["salt"] not in blocked and r not in alone + held]
            if not there:
                break
            r = min(there, key=lambda r: (-r["priority"], self.key(r), r["came"]))
            unknown = r["id"] in self.undelivered
            if unknown or r["id"] in self.cache or self.needs(r) > self.quota(r["salt"]):
                alone.append(r)
                continue
            state, tokens = self.cache._cache_state, self.cache_tokens(r)
            domain = state.domains.get(r["salt"], ABSENT)
            arguments = state.handle.address, domain, tokens, len(self.running)
            pool, quota, cached = pages_missing(*arguments)
            if quota:
                blocked.add(r["salt"])
                continue
            if pool:
                break
            if self.is_held(r, cached):
                held.append(r)
                if len(held) == self.max_running:
                    break
                continue
            self.attach(r["id"], tokens, r["salt"], cached)
            extra = max(0, r["prompt"] - r["charged"])
            r["charged"] += extra
            self.counter[r["tenant"]] += extra
            self.leave(r)
            taken = {other["row"] for other in self.running}
            r["row"] = next(row for row in range(self.max_running) if row not in taken)
            self.running.append(r)
            r["computed"] = cached
            self.plan[r["id"]] = min(len(r["tokens"]) - r["computed"], budget)
            budget -= self.plan[r["id"]]
        if self.waiting and not self.running:
            raise CapacityError
        for r in held:
            self.n_held += r["held"] == 0
            r["held"] += 1
        lost, self.lost = self.lost, []
        planned = [r for r in self.running if r["id"] in self.plan]
        planned.sort(key=lambda r: self.plan[r["id"]] > 1)  # one token first, else as they run
        self.rows = [r["row"] for r in planned]
        ends = {r["id"]: r["computed"] + self.plan[r["id"]] for r in planned}
        self.sampling = {r["id"] for r in planned if ends[r["id"]] == len(r["tokens"])}
        return [(r["id"], r["computed"], self.plan[r["id"]]) for r in planned], lost

    def is_held(self, r, cached):
        """Whether a running request is computing the next page of a prompt."""
        size, tokens = self.cache.page_size, r["tokens"]
        stop = cached + size
        if cached % size or stop > len(tokens) - (size == 1) or r["held"] >= self.max_hold_steps:
            return False
        return self.cache.prefix_sharing and any(
            other["computed"] < min(stop, len(other["tokens"]) - 1)
            and other["salt"] == r["salt"]
            and other["tokens"][:stop] == tokens[:stop]
            for other in self.running
        )

    def attach(self, id_, tokens, salt, cached):
        """Attach a prompt whose first `cached` tokens need not be computed: never all of them."""
        n = len(tokens)
        hits = self.cache.attach(id_, tokens, salt=salt)
        if hits == n:  # into a copy of the last page, or that page is computed again
            assert cached in (n - 1, n - self.cache.page_size)
            self.cache.truncate(id_, cached)
            self.cache.append(id_, tokens[cached:])
        else:
            assert hits == cached

    def needs(self, r):
        generated = len(r["tokens"]) - r["prompt"]
        return -(-(r["prompt"] + generated + r["left"] - 1) // self.cache.page_size)

    def quota(self, salt):
        state = self.cache._cache_state
        quota = state.arrays.domain[state.domains[salt], QUOTA] if salt in state.domains else -1
        return quota if quota >= 0 else self.cache.n_pages

    @staticmethod
    def cache_tokens(r):
        import numpy as np

        return np.array(r["tokens"], np.int32)

    def advance(self, sampled, finished, later=False):
        """`sampled` and `finished`: dicts by id; `later`: the tokens are known here alone."""
        assert not self.undelivered
        growing, done = [], []
        for id_ in [id_ for id_ in sampled if id_ in self.plan]:
            r = next((r for r in self.running if r["id"] == id_), None)
            if r is None:
                continue
            r["computed"] += self.plan[id_]
            due = r["computed"] == len(r["tokens"])
            if due:
                r["left"] -= 1
                r["charged"] += 1
                self.counter[r["tenant"]] += 1
            ends = finished[id_] or (not later and sampled[id_] in r["stop"])
            if due and r["left"] and not ends:
                if later:
                    self.undelivered[id_] = sampled[id_]
                r["tokens"].append(sampled[id_])
                growing.append(r)
                continue
            self.cache.commit(id_, r["computed"])
            if due or ends:
                done.append(r)
        self.plan = {}
        for r in done:
            self.cache.detach(r["id"])
            self.running.remove(r)
        while growing:
            try:
                ids = [r["id"] for r in growing]
                self.cache.append_many(ids, [r["tokens"][-1] for r in growing])
                break
            except CapacityError:
                victim = self.victim()
            self.cache.commit(victim["id"], victim["computed"])
            self.cache.detach(victim["id"])
            self.running.remove(victim)
            growing = [r for r in growing if r is not victim]
            victim["computed"] = 0
            self.enter(victim)
            self.lost.append(victim["id"])
            self.n_preempted += 1
        return [r["id"] for r in done]

    def deliver(self, finished):
        """Tell requests their tokens; `finished`: a dict by id."""
        done = []
        for id_ in [id_ for id_ in finished if id_ in self.undelivered]:
            (r,) = [r for r in self.waiting + self.running if r["id"] == id_]
            if self.undelivered.pop(id_) in r["stop"] or finished[id_]:
                self.cancel(id_)
                done.append(id_)
        return done

    def victim(self):
        first = min(self.running, key=lambda r: (-r["priority"], r["came"]))
        others = [r for r in self.running if r is not first]
        if not others:
            return first
        return min(
            others,
            key=lambda r: (
                r["priority"],
                -(len(r["tokens"]) - r["computed"] + r["left"]),
                -r["came"],
            ),
        )

    def inputs(self, cache, planned, pad_to=0, width=None):
        """Of rows (id, start, n), by what a cache tells of each sequence."""
        spare, tables = cache.n_pages, []
        parts = {name: [] for name in ("tokens", "positions", "slots", "kv_len", "cu_q", "samples")}
        parts["cu_q"].append(0)
        for id_, start, n in [*planned, *[(None, 0, 1)] * (pad_to - len(planned))]:
            tokens, places, stop = [0] * n, range(n), n
            pages = [spare] * -(-n // cache.page_size)  # of one that has ended: as many as it needs
            slots = [spare * cache.page_size] * n
            if any(r["id"] == id_ for r in self.running):
                stop = start + n
                text, places = cache.tokens(id_).tolist(), range(start, stop)
                tokens, pages = text[start:stop], cache.block_table([id_])[0].tolist()
                slots = cache.slot_mapping([id_], start, stop).tolist()
            if id_ in self.sampling:
                parts["samples"].append(len(parts["tokens"]) + n - 1)
            parts["tokens"] += tokens
            parts["positions"] += places
            parts["slots"] += slots
            parts["kv_len"].append(stop)
            parts["cu_q"].append(len(parts["tokens"]))
            tables.append(pages)
        width = max([1, *map(len, tables)]) if width is None else width
        return [*parts.values(), [pages + [spare] * (width - len(pages)) for pages in tables]]

    def cancel(self, id_):
        self.undelivered.pop(id_, None)
        for r in self.waiting:
            if r["id"] == id_:
                self.leave(r)
                return
        (r,) = [r for r in self.running if r["id"] == id_]
        self.cache.detach(id_)
        self.running.remove(r)
