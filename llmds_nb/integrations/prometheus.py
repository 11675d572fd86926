"""Collector: the `stats()` of any object as metrics of Prometheus (extra `prometheus`).

A metric is named after the class and the field, such as `llmds_nb_kv_cache_free_pages`, by the
conventions of Prometheus:

- a count since the start ends in `_total`, and is a counter; all else is a gauge;
- units are base units and stand at the end: `ttft_ms` becomes `_ttft_seconds`, `nbytes` `_bytes`,
  shares of a whole `_ratio`, `tokens_per_s` `_tokens_per_second`;
- HELP is the comment at the field in the class of the stats, or else what that class is about.

Labels: `name`, which tells objects of a class apart; `quantile` for percentiles (0.5, 0.95, 0.99,
and 1 for the largest); `index` for the entries of an array; `key` for those of a dict. Texts are
labels of one metric, `_info`. What is None is left out.

Of an array or a dict at most `max_labels` entries become label values, so that keys of users cannot
grow a time series each; `llmds_nb_scrape_left_out` counts those left out, and what is no number. An
object whose `stats()` raises is left out of the scrape: `llmds_nb_scrape_errors_total` counts that.

A dashboard for Grafana is beside this module: `dashboards/llmds_nb.json`.
"""

import inspect
import logging
import numbers
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from llmds_nb._core import validation
from llmds_nb._core.forking import new_lock

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError as error:
    text = (
        "llmds_nb.integrations.prometheus needs prometheus-client: "
        "pip install 'llmds_nb[prometheus]'"
    )
    raise ImportError(text) from error

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())

# Fields that only rise, by the class of the stats.
COUNTERS = {
    "AdmissionStats": "admitted admitted_tokens refused_tokens refused_by_qps refused_by_tokens "
    "too_large refused_by_key_qps refused_by_key_tokens",
    "ContinuousStats": "submitted finished cancelled preempted late steps computed_tokens "
    "generated_tokens cached_tokens recomputed_tokens held",
    "EngineStats": "submitted finished cancelled failed preempted steps computed_tokens "
    "generated_tokens cached_tokens recomputed_tokens",
    "HeapStats": "pushed",
    "KVCacheStats": "lookups hits shares copies evictions",
    "LRUStats": "hits misses evictions",
    "PipelineStats": "queries cache_hits cache_misses",
    "PublisherStats": "batches events replays bad_requests",
    "RouterStats": "routed followed spilled unknown_parents forgotten",
    "SchedulerStats": "submitted completed cancelled requeued late batches released_full "
    "released_wait released_idle released_force",
    "SubscriberStats": "batches events left_out gaps replayed lost restarts bad_frames "
    "failed_replays",
}
_NAMES = {  # where a field alone would not tell what it counts, or in what unit
    "batch_fill": "batch_fill_ratio",
    "fragmentation": "fragmentation_ratio",
    "imbalance": "imbalance_ratio",
    "n": "size",
    "n_bytes": "bytes",
    "nbytes": "bytes",
    "n_cached": "cached_pages",
    "n_evictable": "evictable_pages",
    "n_free": "free_pages",
    "n_owned": "owned_pages",
    "n_pinned": "pinned_pages",
    "n_shared": "shared_pages",
    "n_used": "used_pages",
    "n_removed": "removed_docs",
    "total": "added",
    "qps": "queries_per_second",
    "admitted_qps": "admitted_queries_per_second",
    "admitted_token_rate": "admitted_tokens_per_second",
}
_UNITS = (("_per_s", "_per_second", 1.0), ("_ms", "_seconds", 1e3), ("_us", "_seconds", 1e6),
          ("_ns", "_seconds", 1e9), ("_s", "_seconds", 1.0), ("_share", "_ratio", 1.0))  # fmt: skip
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99", "max": "1"}
_PREFIX = "llmds_nb_"
_ERRORS, _LEFT_OUT = _PREFIX + "scrape_errors", _PREFIX + "scrape_left_out"


def _snake(name: str) -> str:
    """KVCache as kv_cache, HNSW as hnsw."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"\W", "_", name).lower()


def _metric_name(field: str) -> tuple[str, float]:
    """The name of a field by the conventions of Prometheus, and what its value is divided by."""
    if field in _NAMES:
        return _NAMES[field], 1.0
    for suffix, base, divisor in _UNITS:
        if field.endswith(suffix):
            return field.removesuffix(suffix) + base, divisor
    return field.removeprefix("n_"), 1.0


@cache
def _comments(cls: type) -> dict[str, str]:
    """The comments at the fields of a class, by field; none where its source is not there."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    found = re.findall(r"^ +(\w+) *:[^#\n]*# *(.+)$", source, re.M)
    return {field: comment.rstrip(" ,") for field, comment in found}


def _help(cls: type, field: str) -> str:
    """What the class of some stats says of a field."""
    comment = _comments(cls).get(field)
    if comment:
        return f"{field}: {comment}"
    about = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    is_generated = cls is dict or about.startswith(f"{cls.__name__}(")  # by NamedTuple itself
    return field if is_generated or not about else f"{field}. {about}"


class _Reader:
    """Turns what a `stats()` returned into the arguments of `_Scrape.add`."""

    def __init__(self, prefix: str, counters: frozenset[str], max_labels: int) -> None:
        self.prefix, self.counters, self.max_labels = prefix, counters, max_labels
        self.samples: list[tuple[str, str, dict[str, str], float, bool]] = []
        self.texts: dict[str, str] = {}
        self.left_out = 0

    def fields(self, names: list[str], cls: type, entries: Mapping, labels: dict) -> None:
        """The entries of a NamedTuple, or of a dict of names, each with a name of its own."""
        for field, entry in self._first(entries):
            name, divisor = _metric_name(field)
            about, counts = _help(cls, field), field in self.counters
            self.value([*names, re.sub(r"\W", "_", name)], about, entry, labels, divisor, counts)

    def value(self, names, about, value: Any, labels, divisor, counts) -> None:
        """One value, and all that it holds."""
        if value is None:
            return
        if isinstance(value, str):
            self.texts["_".join(names)] = value
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):
            entries = value._asdict()
            if not entries.keys() <= _QUANTILES.keys():
                self.fields(names, type(value), entries, labels)
                return
            for field, entry in entries.items():
                own = {**labels, "quantile": _QUANTILES[field]}
                self.value(names, about, entry, own, divisor, False)
        elif isinstance(value, Mapping):
            self.entries("key", value, names, about, labels, divisor, counts)
        elif isinstance(value, list | tuple | np.ndarray) and np.ndim(value):
            entries = dict(enumerate(value))
            self.entries("index", entries, names, about, labels, divisor, counts)
        elif isinstance(value, numbers.Real | np.bool_ | np.ndarray):
            number = float(value) / divisor
            self.samples.append(("_".join([self.prefix, *names]), about, labels, number, counts))
        else:  # what no metric can hold
            self.left_out += 1

    def entries(self, label, entries, names, about, labels, divisor, counts) -> None:
        """The entries of a dict or an array, told apart by a label."""
        if label in labels:  # a dict in a dict: one label cannot tell them apart
            self.left_out += len(entries)
            return
        for key, entry in self._first(entries):
            self.value(names, about, entry, {**labels, label: str(key)}, divisor, counts)

    def _first(self, entries: Mapping) -> list[tuple[Any, Any]]:
        self.left_out += max(0, len(entries) - self.max_labels)
        return list(islice(entries.items(), self.max_labels))


class _Scrape:
    """The families of one scrape, in which the samples of all objects come together by name."""

    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}

    def add(self, name: str, about: str, labels: dict[str, str], value: float, counts: bool):
        """Add a sample; ValueError where the name is of another kind already."""
        made = self.families.get(name)
        if made is None:
            kind: Any = CounterMetricFamily if counts else GaugeMetricFamily
            made = self.families[name] = kind(name, about)
        if (made.type == "counter") != counts:
            raise ValueError(f"{name} is a {made.type} of another object")
        made.add_sample(name + "_total" * counts, labels, value)


class Collector:
    """The `stats()` of an object as metrics of Prometheus; see the module for their names.

    Parameters
    ----------
    obj : object
        Whatever has a `stats()` without arguments that returns a NamedTuple or a dict, nested ones
        included: every structure, an Engine, a RetrievalPipeline. It is asked at each scrape, by
        the thread that scrapes.
    name : str
        The label `name` of all its samples.
    registry : prometheus_client.CollectorRegistry, optional
        Register in it at once. All objects given the same registry share each metric's HELP and
        TYPE, as the text format demands: prefer this where several are of one class. Without it,
        `registry.register(collector)` does what it does for any collector.
    counters : iterable of str
        Fields of stats of your own that only rise.
    max_labels : int
        The most entries of one array or dict that become label values, at least 1.

    Notes
    -----
    A scrape costs one `stats()` and about 2 us a sample.

    >>> import llmds_nb, prometheus_client
    >>> registry = prometheus_client.CollectorRegistry()
    >>> cache = llmds_nb.KVCache(n_pages=8, page_size=4)
    >>> collector = Collector(cache, "main", registry=registry)
    >>> cache.attach(1, range(10))
    0
    >>> registry.get_sample_value("llmds_nb_kv_cache_free_pages", {"name": "main"})
    5.0
    >>> registry.get_sample_value("llmds_nb_kv_cache_lookups_total", {"name": "main"})
    10.0
    """

    def __init__(
        self,
        obj: Any,
        name: str,
        *,
        registry: CollectorRegistry | None = None,
        counters: Iterable[str] = (),
        max_labels: int = 100,
    ) -> None:
        if not callable(getattr(obj, "stats", None)):
            raise TypeError(f"obj must have a method stats(), not {validation.shown(obj)}")
        self.obj, self.name = obj, validation.text(name, "name")
        self._counters = frozenset(validation.texts(counters, "counters"))
        self._max_labels = validation.integer(max_labels, "max_labels", low=1)
        ours = (c for c in type(obj).__mro__ if c.__module__.partition(".")[0] == "llmds_nb")
        self.prefix = _PREFIX + _snake(next(ours, type(obj)).__name__)
        self._lock = new_lock()
        self._n_errors = 0
        self._group: _Group | None = None
        if registry is not None:
            self._group = _group_of(registry)
            self._group.join(self)

    def describe(self) -> list[Metric]:
        """Nothing: a registry then asks for no scrape when it registers this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of a scrape; never raises what `stats()` raises."""
        yield from _collected([self])

    def unregister(self) -> None:
        """Leave the registry given at the start; no effect where there was none."""
        if self._group is not None:
            self._group.leave(self)

    def _samples(self) -> tuple[list[Any], int]:
        """The arguments of `_Scrape.add` for all samples, and how many entries were left out."""
        try:
            stats = self.obj.stats()
            found, left_out = self._read(stats)
        except Exception as error:
            with self._lock:
                self._n_errors += 1
            _LOG.warning("stats() of %s %r: %r", self.prefix, self.name, error)
            return [], 0
        return found, left_out

    def _read(self, stats):
        cls = type(stats)
        counters = self._counters.union(COUNTERS.get(cls.__name__, "").split())
        reader, labels = _Reader(self.prefix, counters, self._max_labels), {"name": self.name}
        names = isinstance(stats, Mapping) and all(
            isinstance(key, str) and key.isidentifier() for key in stats
        )
        if names:
            reader.fields([], cls, stats, labels)
        else:
            reader.value([], _help(cls, "stats"), stats, labels, 1.0, False)
        if reader.texts:
            about = "Settings that are texts, as labels; the value is 1."
            sample = self.prefix + "_info", about, {**labels, **reader.texts}, 1.0, False
            reader.samples.append(sample)
        return reader.samples, reader.left_out


def _collected(collectors: Iterable[Collector]) -> list[Metric]:
    """The families of several collectors, those of one name as one."""
    scrape = _Scrape()
    for collector in collectors:
        samples, left_out = collector._samples()
        own = {"name": collector.name, "structure": collector.prefix.removeprefix(_PREFIX)}
        for sample in samples:
            try:
                scrape.add(*sample)
            except ValueError as error:
                collector._n_errors += 1
                _LOG.warning("%s %r: %s", collector.prefix, collector.name, error)
        text = "Scrapes in which stats() of an object raised, so that it was left out."
        scrape.add(_ERRORS, text, own, float(collector._n_errors), True)
        text = "Entries of arrays and dicts beyond max_labels, in the last scrape."
        scrape.add(_LEFT_OUT, text, own, float(left_out), False)
    return list(scrape.families.values())


class _Group:
    """All collectors of a registry, registered there as one."""

    def __init__(self, registry) -> None:
        self._lock = new_lock()
        self._members: dict[tuple[str, str], Collector] = {}
        registry.register(self)

    def join(self, collector: Collector) -> None:
        key = collector.prefix, collector.name
        with self._lock:
            if key in self._members:
                raise ValueError(
                    f"the registry has a {type(collector.obj).__name__} "
                    f"of name {collector.name!r} already"
                )
            self._members[key] = collector

    def leave(self, collector: Collector) -> None:
        with self._lock:
            if self._members.get((collector.prefix, collector.name)) is collector:
                del self._members[collector.prefix, collector.name]

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            members = list(self._members.values())
        yield from _collected(members)


_groups: "weakref.WeakKeyDictionary[Any, _Group]" = weakref.WeakKeyDictionary()
_groups_lock = new_lock()


def _group_of(registry) -> _Group:
    if not isinstance(registry, CollectorRegistry):
        kind = type(registry).__name__
        raise TypeError(f"registry must be a prometheus_client.CollectorRegistry, not {kind}")
    with _groups_lock:
        group = _groups.get(registry)
        if group is None:
            group = _groups[registry] = _Group(registry)
        return group
