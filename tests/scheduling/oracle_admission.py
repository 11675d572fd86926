"""The plain-Python oracle of AdmissionController: rational arithmetic, one request at a time."""

import math
from fractions import Fraction


class Buckets:
    """A bucket of requests and one of tokens; None is no limit."""

    def __init__(self, rates, burst_ms, now):
        self.rates = [None if rate is None else Fraction(str(rate)) for rate in rates]
        burst = Fraction(str(burst_ms)) / 1000
        self.capacity = [None if rate is None else max(rate * burst, 1) for rate in self.rates]
        self.level = list(self.capacity)
        self.last = now

    def advance(self, now):
        if now > self.last:
            seconds, self.last = Fraction(now - self.last, 10**9), now
            for b in range(2):
                if self.rates[b] is not None:
                    filled = self.level[b] + seconds * self.rates[b]
                    self.level[b] = min(filled, self.capacity[b])

    def waits(self, tokens):
        """Nanoseconds until each holds enough; inf where it never does."""
        found = []
        for rate, capacity, level, amount in zip(
            self.rates, self.capacity, self.level, (1, tokens), strict=True
        ):
            wait = 0 if rate is None else max(0, math.ceil((amount - level) / rate * 10**9))
            found.append(wait if rate is None or amount <= capacity else math.inf)
        return found

    def take(self, requests, tokens):
        for b, amount in enumerate((requests, tokens)):
            if self.rates[b] is not None:
                self.level[b] = min(self.level[b] - amount, self.capacity[b])


class PlainAdmission:
    def __init__(self, qps, tokens, burst_ms, now, key_limit=(None, None)):
        self.key_limit, self.burst_ms = key_limit, burst_ms
        self.of_all, self.of_key = Buckets((qps, tokens), burst_ms, now), {}

    @property
    def last(self):
        return self.of_all.last

    def advance(self, now):
        self.of_all.advance(now)

    def buckets(self, key, now):
        self.advance(now)
        found = {"": self.of_all}
        if key is not None:
            new = Buckets(self.key_limit, self.burst_ms, self.last)
            found["key_"] = self.of_key.setdefault(key, new)
            found["key_"].advance(self.last)
        return found

    def admit(self, tokens, now, key=None):
        buckets, reason, wait = self.buckets(key, now), "ok", 0
        for j, name in enumerate(("qps", "tokens")):
            for whose, bucket in buckets.items():
                if bucket.waits(tokens)[j] > wait:
                    reason, wait = whose + name, bucket.waits(tokens)[j]
        if wait == 0:
            for bucket in buckets.values():
                bucket.take(1, tokens)
        return wait == 0, "too_large" if wait == math.inf else reason, wait / 1e6

    def settle(self, reserved, used, now, key=None):
        for bucket in self.buckets(key, now).values():
            bucket.take(0, used - reserved)
