"""What the policies achieve on the models of tests/scheduling/simulations.py: no wall time enters.

T1 is a server of micro-batches, T2 an engine that batches by iteration. Each run repeats exactly,
so a change of a number is a change of the code.
"""

from functools import cache
from statistics import median

from . import oracle
from ._support.corpora import DATA

MODELS = "scheduling.simulations"


class MicroBatches:
    """T1: share of the largest throughput that is reached with a p95 below 100 ms, 5 seeds."""

    params = ([8, 16, 32, 48], ["max_wait_ms=50", "when idle"])
    param_names = ("service_ms", "rule")
    version = "1"
    timeout = 600

    def track_largest_load(self, service_ms, rule):
        largest_load = oracle(MODELS, "largest_load")
        return median(largest_load(service_ms, seed, idle=rule == "when idle") for seed in range(5))

    def track_p95_at_95_percent(self, service_ms, rule):
        micro_batches, percentile = oracle(MODELS, "micro_batches"), oracle(MODELS, "percentile")
        idle = rule == "when idle"
        return median(
            percentile(micro_batches(0.95, service_ms, seed, idle=idle), 0.95) for seed in range(5)
        )

    track_largest_load.unit = "share of 32 / S(32)"
    track_p95_at_95_percent.unit = "ms"


class Steps:
    """T2: the seeded conversations, or the Azure code trace at half speed."""

    params = (["conversation", "code"], ["fcfs", "shortest", "slo", "aging", "fair"])
    param_names = ("load", "policy")
    version = "1"
    timeout = 600

    def setup(self, load, policy):
        self.load, self.served = self.built(load, policy)

    @staticmethod
    @cache
    def built(load, policy):
        if load == "code":
            if not DATA.is_dir():
                raise NotImplementedError(f"no data at {DATA}")
            requests = oracle(MODELS, "code_load")(DATA)
        else:
            requests = oracle(MODELS, "conversation_load")(1)
        return requests, oracle(MODELS, "serve")(requests, policy)

    def track_slo_share(self, load, policy):
        return float(self.served.slo.mean())

    def track_longest_wait(self, load, policy):
        return float(self.served.ttft_ms.max() / 1e3)

    def track_p95_ttft_of_small_tenants(self, load, policy):
        if load == "code":
            return float("nan")  # it has one tenant
        percentile = oracle(MODELS, "percentile")
        return percentile(self.served.ttft_ms[self.load.tenant > 0], 0.95)

    track_slo_share.unit = "share of requests"
    track_longest_wait.unit = "s to the first token"
    track_p95_ttft_of_small_tenants.unit = "ms"
