"""The plain-Python oracle of Scheduler: a list of requests, sorted whole for every batch."""

import math

MS = 10**6


class PlainScheduler:
    def __init__(self, size, wait_ms, max_tokens, policy, start, *, ms_per_token=0.02, aging=0.02):
        self.size, self.wait_ms, self.max_tokens, self.policy = size, wait_ms, max_tokens, policy
        self.ms_per_token, self.aging = ms_per_token, aging
        self.start = self.now = start
        self.waiting, self.running = [], []
        self.counter, self.last = {}, None  # of tenants
        self.submitted = self.completed = self.cancelled = self.late = 0

    def tick(self, now):
        self.now = max(self.now, now)

    def submit(self, tokens, slo_ms, priority, tenant):
        request = {
            "id": self.submitted,
            "tokens": tokens,
            "priority": priority,
            "tenant": tenant,
            "arrival": self.now,
            "deadline": self.now + int(min(slo_ms * 1e6, 2**61)),
            "charged": 0,
        }
        self.submitted += 1
        self.enter(request)
        return request["id"]

    def enter(self, request):
        tenant, counter = request["tenant"], self.counter
        active = {r["tenant"] for r in self.waiting}
        counter.setdefault(tenant, 0)
        if tenant not in active:
            if active:
                floor = min(counter[t] for t in active)
            else:
                floor = counter.get(self.last, 0)
            counter[tenant] = max(counter[tenant], floor)
        self.waiting.append(request)

    def leave(self, request):
        self.waiting.remove(request)
        if all(r["tenant"] != request["tenant"] for r in self.waiting):
            self.last = request["tenant"]

    def key(self, r):
        if self.policy == "fair":  # equals by who came first, as `counter` is ordered
            return self.counter[r["tenant"]], list(self.counter).index(r["tenant"])
        cost = self.ms_per_token * MS * r["tokens"]
        return {
            "fcfs": 0,
            "shortest": r["tokens"],
            "slo": r["deadline"],
            "aging": cost + self.aging * float(r["arrival"] - self.start),
        }[self.policy]

    def first(self):
        return min(self.waiting, key=lambda r: (-r["priority"], self.key(r), r["id"]))

    def full(self):
        if self.max_tokens and sum(r["tokens"] for r in self.waiting) >= self.max_tokens:
            return True
        return len(self.waiting) >= self.size

    def due_ns(self):
        if not self.waiting:
            return math.inf
        waited = self.now - min(r["arrival"] for r in self.waiting)
        return 0 if self.full() else max(0, int(self.wait_ms * MS) - waited)

    def get_batch(self, demanded):
        batch = []
        if not self.waiting or (self.due_ns() > 0 and not demanded):
            return batch
        while self.waiting and len(batch) < self.size:
            first = self.first()
            total = first["tokens"] + sum(r["tokens"] for r in batch)
            if self.max_tokens and total > self.max_tokens:
                break
            extra = max(0, first["tokens"] - first["charged"])
            first["charged"] += extra
            self.counter[first["tenant"]] += extra
            self.leave(first)
            self.running.append(first)
            batch.append(first)
        return batch

    def find(self, id_, among):
        return next((r for r in among if r["id"] == id_), None)

    def complete(self, id_):
        request = self.find(id_, self.running)
        self.running.remove(request)
        self.completed += 1
        self.late += self.now > request["deadline"]

    def cancel(self, id_):
        request = self.find(id_, self.waiting)
        if request:
            self.leave(request)
        else:
            self.running.remove(self.find(id_, self.running))
        self.cancelled += 1

    def requeue(self, id_):
        request = self.find(id_, self.running)
        self.running.remove(request)
        self.enter(request)

    def update(self, id_, tokens):
        self.find(id_, self.waiting + self.running)["tokens"] = tokens
