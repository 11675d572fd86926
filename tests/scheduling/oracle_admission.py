"""The plain-Python oracle of AdmissionController: rational arithmetic, one request at a time."""

import math
from fractions import Fraction


class PlainAdmission:
    def __init__(self, qps, tokens, burst_ms, now):
        self.rates = [None if rate is None else Fraction(str(rate)) for rate in (qps, tokens)]
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

    def admit(self, tokens, now):
        self.advance(now)
        if self.rates[1] is not None and tokens > self.capacity[1]:
            return False, "too_large", math.inf
        waits = [
            0 if rate is None else max(0, math.ceil((amount - level) / rate * 10**9))
            for rate, level, amount in zip(self.rates, self.level, (1, tokens), strict=True)
        ]
        if max(waits) > 0:
            return False, "tokens" if waits[1] > waits[0] else "qps", max(waits) / 1e6
        for b, amount in enumerate((1, tokens)):
            if self.rates[b] is not None:
                self.level[b] -= amount
        return True, "ok", 0.0
