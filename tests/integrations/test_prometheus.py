"""Collector: every structure's stats as metrics of Prometheus, and the dashboard over them."""

import json
import math
import re
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict_parse
from prometheus_client.parser import text_string_to_metric_families as parse

from llmds_nb import KVCache, RetrievalPipeline
from llmds_nb.integrations import prometheus
from llmds_nb.integrations.prometheus import COUNTERS, Collector
from llmds_nb.scheduling import Percentiles

from ..cases import cases

DASHBOARD = Path(prometheus.__file__).parent / "dashboards" / "llmds_nb.json"
MAX_SAMPLES = 300  # of one object: no label has values without bound


@pytest.fixture(scope="module")
def everything():
    """A registry of an object of each case, and the objects by name."""
    registry, objects = CollectorRegistry(), {}
    for name, case in cases().items():
        made = case.make()
        if hasattr(made, "stats"):
            objects[name] = made
            Collector(made, name, registry=registry)
    return registry, objects


def families_of(registry, reader=parse):
    return list(reader(generate_latest(registry).decode()))


def values_of(registry, name):
    """{(metric, other labels): value} of the samples of one name."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "name"))): s.value
        for family in families_of(registry)
        for s in family.samples
        if s.labels["name"] == name
    }


def test_every_structure_has_metrics_of_all_its_stats(everything):
    registry, objects = everything
    assert {name.partition("-")[0] for name in objects} >= {
        "HNSW", "InvertedIndex", "KVCache", "PagedAllocator", "RetrievalPipeline", "Scheduler",
        "ContinuousBatcher", "AdmissionController", "PrefixRouter", "IndexedHeap", "TokenLRU",
        "CountMinSketch", "LsaEncoder",
    }  # fmt: skip
    samples = [s for family in families_of(registry) for s in family.samples]
    for name, made in objects.items():
        stats = made.stats()
        fields = stats if isinstance(stats, dict) else stats._asdict()
        numbers = [v for v in fields.values() if isinstance(v, int | float | np.number)]
        numbers += [v for p in fields.values() if isinstance(p, Percentiles) for v in p]
        own = [s for s in samples if s.labels["name"] == name and "scrape" not in s.name]
        assert len(numbers) <= len(own) <= MAX_SAMPLES, name
        assert len({(s.name, *sorted(s.labels.items())) for s in own}) == len(own)
    errors = [s.value for s in samples if s.name == "llmds_nb_scrape_errors_total"]
    assert len(errors) == len(objects) and not any(errors)
    assert not any(s.value for s in samples if s.name == "llmds_nb_scrape_left_out")


def test_names_are_as_prometheus_wants_them(everything):
    registry, _ = everything
    families = families_of(registry)
    assert len({family.name for family in families}) == len(families)  # each described once
    for family in families:
        name = family.name
        assert re.fullmatch(r"llmds_nb_[a-z][a-z0-9_]*", name), name
        assert family.documentation and family.type in ("counter", "gauge")
        assert "\n" not in family.documentation
        assert (family.type == "gauge") <= (not re.search(r"_(total|count|sum|bucket)$", name))
        assert not re.search(r"_(ms|us|ns|s|share|nbytes|n_bytes|percent)$", name), name
        for sample in family.samples:
            assert sample.name == name + "_total" * (family.type == "counter")
            assert set(sample.labels) <= {
                "name", "structure", "quantile", "index", "key", "coding"
            }, sample  # fmt: skip
    text = exposition.generate_latest(registry).decode()
    strict = list(strict_parse(text))
    assert {f.name for f in strict} >= {f.name.removesuffix("_total") for f in families}


def test_help_is_what_the_class_says():
    registry = CollectorRegistry()
    Collector(KVCache(4, 2), "a", registry=registry)
    said = {family.name: family.documentation for family in families_of(registry)}
    assert said["llmds_nb_kv_cache_used_pages"] == (
        "n_used: held by sequences, pins or pending copies"
    )
    assert said["llmds_nb_kv_cache_free_pages"] == (
        "n_free. Sizes and counts of a KVCache; pages unless said otherwise."
    )


def test_the_table_of_counters_names_fields_that_there_are():
    classes = {type(case.make().stats()) for name, case in cases().items() if name in (
        "KVCache-lru", "PrefixRouter", "AdmissionController", "Scheduler-fcfs",
        "ContinuousBatcher-fcfs", "IndexedHeap", "TokenLRU", "RetrievalPipeline",
    )}  # fmt: skip
    known = {cls.__name__: cls for cls in classes}
    assert len(known.keys() & COUNTERS.keys()) >= 5
    for name, cls in known.items():
        assert set(COUNTERS.get(name, "").split()) <= set(cls._fields)


class Inner(NamedTuple):
    """Of one shard."""

    depth: int  # levels
    wait_ms: Percentiles  # in the queue


class Stats(NamedTuple):
    """What a test counts."""

    done: int
    uptime_s: float  # since the start
    inner: Inner
    by_key: dict
    levels: np.ndarray
    kind: str
    nothing: int | None
    due: bool
    odd: object
    tokens_per_s: float


class Thing:
    def __init__(self, keys=3):
        self.keys, self.error = keys, None

    def stats(self):
        if self.error:
            raise self.error
        inner = Inner(4, Percentiles(1.0, 2.0, 3.0, math.nan))
        by_key = {f"user {i}": i for i in range(self.keys)}
        return Stats(7, 1.5, inner, by_key, np.array([3, 1]), 'k\n"x', None, True, object(), 9.0)


def test_nested_stats_and_those_by_key():
    registry = CollectorRegistry()
    Collector(Thing(), "a", registry=registry, counters=["done"])
    assert values_of(registry, "a") == {
        ("llmds_nb_thing_done_total", ()): 7,
        ("llmds_nb_thing_uptime_seconds", ()): 1.5,
        ("llmds_nb_thing_inner_depth", ()): 4,
        ("llmds_nb_thing_inner_wait_seconds", (("quantile", "0.5"),)): 0.001,
        ("llmds_nb_thing_inner_wait_seconds", (("quantile", "0.95"),)): 0.002,
        ("llmds_nb_thing_inner_wait_seconds", (("quantile", "0.99"),)): 0.003,
        ("llmds_nb_thing_inner_wait_seconds", (("quantile", "1"),)): pytest.approx(
            math.nan, nan_ok=True
        ),
        ("llmds_nb_thing_by_key", (("key", "user 0"),)): 0,
        ("llmds_nb_thing_by_key", (("key", "user 1"),)): 1,
        ("llmds_nb_thing_by_key", (("key", "user 2"),)): 2,
        ("llmds_nb_thing_levels", (("index", "0"),)): 3,
        ("llmds_nb_thing_levels", (("index", "1"),)): 1,
        ("llmds_nb_thing_due", ()): 1,
        ("llmds_nb_thing_tokens_per_second", ()): 9,
        ("llmds_nb_thing_info", (("kind", 'k\n"x'),)): 1,
        ("llmds_nb_scrape_errors_total", (("structure", "thing"),)): 0,
        ("llmds_nb_scrape_left_out", (("structure", "thing"),)): 1,  # the object
    }


def test_keys_of_users_do_not_become_a_series_each():
    registry = CollectorRegistry()
    thing = Thing(keys=5_000)
    Collector(thing, "a", registry=registry, max_labels=20)
    found = values_of(registry, "a")
    assert sum(name == "llmds_nb_thing_by_key" for name, _ in found) == 20
    assert found["llmds_nb_scrape_left_out", (("structure", "thing"),)] == 4_980 + 1

    class ByUser:
        def stats(self):
            return {f"user_{i}": {"tokens": i} for i in range(5_000)}

    registry = CollectorRegistry()
    Collector(ByUser(), "a", registry=registry)
    assert len(values_of(registry, "a")) == 100 + 2


def test_an_object_whose_stats_raise_is_left_out_and_counted():
    registry, broken, closed = CollectorRegistry(), Thing(), Thing()
    Collector(Thing(), "first", registry=registry)
    Collector(broken, "broken", registry=registry)
    Collector(closed, "closed", registry=registry)
    Collector(Thing(), "last", registry=registry)
    whole = values_of(registry, "first").keys()
    broken.error, closed.error = ZeroDivisionError("x"), RuntimeError("closed")
    for times in (1, 2):
        assert values_of(registry, "first").keys() == values_of(registry, "last").keys() == whole
        errors = "llmds_nb_scrape_errors_total", (("structure", "thing"),)
        found = values_of(registry, "broken")  # the third scrape of this round
        assert found[errors] == 3 * times and len(found) == 2
    broken.error = None
    assert values_of(registry, "broken").keys() == whole


def test_an_interrupt_is_no_error_of_the_object():
    registry, thing = CollectorRegistry(), Thing()
    Collector(thing, "a", registry=registry)
    thing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        generate_latest(registry)


def test_two_of_a_name_in_a_registry_are_refused():
    registry = CollectorRegistry()
    first = Collector(Thing(), "a", registry=registry)
    with pytest.raises(ValueError, match="Thing of name 'a' already"):
        Collector(Thing(5), "a", registry=registry)
    assert sum(name == "llmds_nb_thing_by_key" for name, _ in values_of(registry, "a")) == 3
    first.unregister()
    assert not values_of(registry, "a")
    Collector(Thing(5), "a", registry=registry)
    assert sum(name == "llmds_nb_thing_by_key" for name, _ in values_of(registry, "a")) == 5


def test_it_registers_like_any_collector_too():
    registry = CollectorRegistry(auto_describe=True)
    collectors = [Collector(KVCache(n, 2), f"cache {n}") for n in (4, 5)]
    for collector in collectors:
        registry.register(collector)
        collector.unregister()  # of no registry given: no effect
    for n in (4, 5):
        labels = {"name": f"cache {n}"}
        assert registry.get_sample_value("llmds_nb_kv_cache_free_pages", labels) == n
    registry.unregister(collectors[0])
    assert registry.get_sample_value("llmds_nb_kv_cache_pages", {"name": "cache 4"}) is None


def test_a_subclass_has_the_metrics_of_its_structure():
    class Mine(KVCache):
        pass

    registry = CollectorRegistry()
    Collector(Mine(4, 2), "a", registry=registry)
    assert ("llmds_nb_kv_cache_pages", ()) in values_of(registry, "a")


def test_scrapes_beside_writes_and_other_scrapes():
    registry = CollectorRegistry()
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add(range(3), ["red fox", "blue sea", "green tree"], np.eye(3, 2) + 1)
    Collector(pipeline, "a", registry=registry)
    seen = []

    def scrape():
        for _ in range(20):
            found = values_of(registry, "a")
            seen.append(found["llmds_nb_retrieval_pipeline_documents", ()])

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(3, 20):
        pipeline.add([i], ["more text"], [[i, 1]])
        pipeline.search("fox", k=2, vectors=[[1, 0]])
    for thread in threads:
        thread.join()
    assert len(seen) == 60 and set(seen) <= set(range(3, 21))
    assert values_of(registry, "a")["llmds_nb_retrieval_pipeline_queries_total", ()] == 17


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((object(), "a"), {}, TypeError, r"method stats\(\)"),
        ((Thing(), 3), {}, TypeError, "name must be a str, not int"),
        ((Thing(), "a"), {"registry": "x"}, TypeError, "CollectorRegistry, not str"),
        ((Thing(), "a"), {"max_labels": 0}, ValueError, "max_labels must be >= 1, not 0"),
    ],
)
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        Collector(*arguments, **options)


# ---- the dashboard -----------------------------------------------------------------------------

_PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["row", "timeseries", "stat"]},
        "title": {"type": "string", "minLength": 1},
        "gridPos": {
            "type": "object",
            "required": ["h", "w", "x", "y"],
            "properties": {
                "h": {"type": "integer", "minimum": 1},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
            },
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["refId", "expr", "datasource"],
                "properties": {
                    "refId": {"type": "string", "pattern": "^[A-Z]$"},
                    "expr": {"type": "string", "minLength": 1},
                    "datasource": {"$ref": "#/$defs/datasource"},
                },
            },
        },
    },
    "if": {"properties": {"type": {"const": "row"}}},
    "else": {"required": ["targets", "datasource", "fieldConfig", "options"]},
}
SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time", "version"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "items": _PANEL, "minItems": 1},
        "templating": {
            "type": "object",
            "required": ["list"],
            "properties": {
                "list": {"type": "array", "items": {"required": ["name", "type", "query"]}}
            },
        },
        "time": {"type": "object", "required": ["from", "to"]},
    },
    "$defs": {
        "datasource": {
            "type": "object",
            "required": ["type", "uid"],
            "properties": {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}},
        }
    },
}


def test_the_dashboard_is_of_the_form_that_grafana_loads():
    jsonschema = pytest.importorskip("jsonschema")
    dashboard = json.loads(DASHBOARD.read_text())
    jsonschema.validate(dashboard, SCHEMA)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", DASHBOARD.read_text()))
    assert used == names == {"datasource", "name"}


# What the dashboard asks of an Engine; tested below where torch is installed.
ENGINE = {
    "llmds_nb_engine_running": {"name"},
    "llmds_nb_engine_waiting": {"name"},
    "llmds_nb_engine_generated_tokens_total": {"name"},
    "llmds_nb_engine_computed_tokens_total": {"name"},
    "llmds_nb_engine_cached_tokens_total": {"name"},
    "llmds_nb_engine_ttft_seconds": {"name", "quantile"},
    "llmds_nb_engine_latency_seconds": {"name", "quantile"},
}


def test_an_engine_has_metrics():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from llmds_nb.integrations.transformers import Engine
    from llmds_nb.integrations.transformers.random_models import random_model

    registry = CollectorRegistry()
    engine = Engine(random_model("llama"), n_pages=16, page_size=4)
    Collector(engine, "a", registry=registry)
    engine.generate([[1, 2, 3, 4, 5]], max_new_tokens=3)
    found = values_of(registry, "a")
    for name, labels in ENGINE.items():
        quantiles = {dict(labels).get("quantile") for own, labels in found if own == name}
        assert quantiles == ({"0.5", "0.95", "0.99", "1"} if len(labels) == 2 else {None}), name
    assert found["llmds_nb_engine_finished_total", ()] == 1
    assert found["llmds_nb_engine_generated_tokens_total", ()] == 3
    assert set(COUNTERS["EngineStats"].split()) <= set(type(engine.stats())._fields)


def test_every_metric_of_the_dashboard_is_exported(everything):
    registry, _ = everything
    exported = {}
    for family in families_of(registry):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    exported |= ENGINE
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    queries += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    asked = 0
    for query in queries:
        for name, labels in re.findall(r"(llmds_nb_\w+)(?:\{([^}]*)\})?", query):
            assert name in exported, name
            assert set(re.findall(r"(\w+)=~?", labels)) <= exported[name], query
            asked += 1
            counts = name.endswith("_total") and "label_values" not in query
            assert counts == (f"rate({name}" in query), query
    assert asked > 30
