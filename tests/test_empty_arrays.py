"""What is empty has no dtype that matters: where `[]` is taken, so is `np.array([])`, a float64."""

import numpy as np
import pytest

import llmds_nb
from tests.cases import cases
from tests.hostile import plausible
from tests.hostile.calls import methods

EMPTY = [np.array([]), np.array([], object)]


def calls(cls, obj):
    """(method, parameter, arguments of the others that it needs) of every public method."""
    for method, signature in methods(cls).items():
        known = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        for chosen in known:
            if chosen.name == "out":  # whose dtype is what it is asked for
                continue
            rng = np.random.default_rng(1)
            named = {
                p.name: None if p is chosen else plausible.value(rng, cls.__name__, method, p, obj)
                for p in known
                if p is chosen or p.default is p.empty
            }
            yield method, chosen.name, named


def error_of(case, cls, method, named):
    """What a call raises of a new object, or None."""
    try:
        if method == "__init__":
            cls(**named)
        elif method.endswith("="):
            setattr(case.make(), method[:-1], *named.values())
        elif method.startswith("__"):
            getattr(case.make(), method)(*named.values())
        else:
            getattr(case.make(), method)(**named)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", cases())
def test_an_empty_array_of_any_dtype_is_taken_where_an_empty_list_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some calls save
    case, cls = cases()[name], getattr(llmds_nb, name.partition("-")[0])
    refused, n = [], 0
    for method, parameter, named in calls(cls, case.make()):
        if error_of(case, cls, method, named | {parameter: []}) is None:
            n += 1
            for empty in EMPTY:
                error = error_of(case, cls, method, named | {parameter: empty})
                if error is not None:
                    refused.append(f"{method}({parameter}={empty!r}): {error!r:.150}")
    assert not refused, "\n".join(refused)
    assert n or name == "LsaEncoder-unfitted"
