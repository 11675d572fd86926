"""Ray's actors in this process, called at once: any of them can be made to die at any call.

It stands for `ray.remote`, `get`, `put`, `wait` and `kill` while it is installed, so that deaths at
every moment, and interrupts at every line, are tried by the thousand, without a process for each.
"""

import copy
from collections.abc import Callable
from typing import Any

from ray import exceptions


class Reference:
    """The answer of a call, or what it raises."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class TaskError(exceptions.RayTaskError):
    """What `ray.get` raises for an exception of an actor's method."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class _Call:
    def __init__(self, handle: "Handle", name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any, **options: Any) -> Reference:
        return self._handle._called(self._name, args, options)


class Handle:
    """The handle of an actor."""

    def __init__(self, cluster: "FakeRay", actor: Any) -> None:
        self._cluster, self._actor, self._dead = cluster, actor, False

    def __getattr__(self, name: str) -> _Call:
        return _Call(self, name)

    def _called(self, name, args, options):
        moment = self._cluster.moment(self, name)
        if moment == "before":
            self._dead = True
        if self._dead:
            return Reference(error=exceptions.ActorDiedError())
        try:
            args = [each.get() if isinstance(each, Reference) else each for each in args]
            options = {
                key: each.get() if isinstance(each, Reference) else each
                for key, each in options.items()
            }
        except Exception as error:
            return Reference(error=error)
        try:
            args, options = copy.deepcopy((args, options))
            reference = Reference(copy.deepcopy(getattr(self._actor, name)(*args, **options)))
        except Exception as error:
            reference = Reference(error=TaskError(error))
        if moment == "after":
            self._dead = True
            return Reference(error=exceptions.ActorDiedError())
        return reference


class _Class:
    def __init__(self, cluster: "FakeRay", kind: type) -> None:
        self._cluster, self._kind = cluster, kind

    def remote(self, *args: Any) -> Handle:
        handle = Handle(self._cluster, self._kind(*copy.deepcopy(args)))
        self._cluster.handles.append(handle)
        return handle


class FakeRay:
    """All actors. `moment(handle, method)` says whether one dies "before" or "after" a call."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []
        self.moment: Callable[[Handle, str], str] = lambda handle, name: ""

    @property
    def live(self) -> list[Handle]:
        """The actors that have not died."""
        return [handle for handle in self.handles if not handle._dead]

    def install(self, monkeypatch: Any) -> None:
        """Stand for Ray until the test ends."""
        import ray

        monkeypatch.setattr(ray, "remote", lambda **_: lambda kind: _Class(self, kind))
        monkeypatch.setattr(ray, "get", lambda reference: reference.get())
        monkeypatch.setattr(ray, "put", lambda value: Reference(value))
        monkeypatch.setattr(ray, "kill", lambda handle: setattr(handle, "_dead", True))
        monkeypatch.setattr(ray, "wait", lambda references, **_: (references, []))
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
