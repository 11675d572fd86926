"""Actors in this process, in place of Ray's: they compute when they are waited for, and can die."""

from types import SimpleNamespace

import numpy as np
from ray import exceptions


class Call:
    """The answer of an actor's method, computed when it is needed."""

    def __init__(self, actor, name, args):
        self.actor, self.name, self.args = actor, name, args
        self.done = False
        self.value = self.error = None

    def run(self):
        if self.done:
            return
        self.done = True
        if self.actor.dead:
            self.error = exceptions.ActorDiedError()
            return
        try:
            self.value = getattr(self.actor.target, self.name)(*self.args)
        except Exception as error:
            self.error = error
        if self.name == "advance":
            self.actor.n_calls += 1
            if self.actor.n_calls == self.actor.dies_after:
                self.actor.dead = True
                self.error = exceptions.ActorDiedError()


class Actor:
    def __init__(self, target):
        self.target, self.dead = target, False
        self.n_calls, self.dies_after = 0, None

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args: Call(self, name, args))


class LocalRay:
    """What RoutedEngines uses of `ray`."""

    exceptions = exceptions

    def __init__(self, seed=0):
        self.actors = []
        self._rng = np.random.default_rng(seed)

    def remote(self, cls):
        def make():
            self.actors.append(Actor(cls()))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, calls, num_returns, timeout):
        if num_returns == 1:
            calls[self._rng.integers(len(calls))].run()
        return [c for c in calls if c.done], [c for c in calls if not c.done]

    def get(self, calls, timeout=None):
        if isinstance(calls, list):
            return [self.get(call) for call in calls]
        calls.run()
        if calls.error is not None:
            raise calls.error
        return calls.value

    def kill(self, actor):
        actor.dead = True

    def is_initialized(self):
        return True
