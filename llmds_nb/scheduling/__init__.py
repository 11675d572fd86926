"""Which request runs when: micro-batches, continuous batches, admission control, prefix routing."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .admission import (
        Admission as Admission,
        AdmissionController as AdmissionController,
        AdmissionStats as AdmissionStats,
    )
    from .continuous import ContinuousBatcher as ContinuousBatcher
    from .continuous_stats import ContinuousStats as ContinuousStats
    from .request_queue import Percentiles as Percentiles
    from .router import PrefixRouter as PrefixRouter, RouterStats as RouterStats
    from .scheduler import Batch as Batch, Scheduler as Scheduler, SchedulerStats as SchedulerStats
    from .simulated_engine import SimulatedEngine as SimulatedEngine
    from .step_plan import StepInputs as StepInputs, StepPlan as StepPlan

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "admission": "Admission AdmissionController AdmissionStats",
        "continuous": "ContinuousBatcher",
        "continuous_stats": "ContinuousStats",
        "request_queue": "Percentiles",
        "router": "PrefixRouter RouterStats",
        "scheduler": "Batch Scheduler SchedulerStats",
        "simulated_engine": "SimulatedEngine",
        "step_plan": "StepInputs StepPlan",
    },
)
