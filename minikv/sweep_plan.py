"""All that makes a sweep: pickled, it builds the same one on another machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from engine import InputError, Model
from engine.kv.formats import kv_format
from minikv.answerer import EngineAnswerer
from minikv.run import ModelChoice
from minikv.sources import CATALOGUE
from tools.results import Pair
from tools.sweep import Grid, Sweep
from tools.sweep_recall import LIMIT, Recall, RecallSettings
from tools.windows import Settings


@dataclass(frozen=True)
class Plan:
    """`text` is what windows are cut from; `recall` counts if the grid has that metric."""

    choice: ModelChoice
    text: str
    settings: Settings
    grid: Grid
    recall: RecallSettings

    def anywhere(self) -> Plan:
        """The same plan for processes that run in other folders."""
        name = self.choice.model
        is_path = name not in CATALOGUE and os.path.exists(name)
        found = os.path.abspath(name) if is_path else name
        return replace(self, choice=replace(self.choice, model=found))

    def sweep(self) -> Sweep:
        """Load the model.  Raises InputError for what no cell could be measured with."""
        # what can be refused before a download is
        for name in {*self.grid.ctk, *self.grid.ctv}:
            kv_format(name)
        for policy in self.grid.policies:
            self.settings.check(policy)
        asked = self.recall if "recall" in self.grid.metrics else None
        model = self.choice.load()
        recall = None if asked is None else self._recall(model, asked)
        return Sweep(model, self.text, self.settings, self.grid, recall)

    def _recall(self, model: Model, asked: RecallSettings) -> Recall:
        recall = Recall(asked, lambda pair: self._answerer(model, pair))
        answerer = self._answerer(model, self.grid.base)
        n, n_ctx = max(map(answerer.count, recall.messages())), model.spec.n_ctx_train
        if n + LIMIT > n_ctx:
            raise InputError(
                f"recall: prompts of {n} tokens and answers of {LIMIT} exceed the model's context "
                f"of {n_ctx}; use fewer --functions or a smaller --value-len"
            )
        return recall

    def _answerer(self, model: Model, pair: Pair) -> EngineAnswerer:
        # the window's size says nothing of this prompt's: the model's own context
        policy = self.grid.policy(pair, self.choice.sink)
        choice = replace(self.choice, policy=policy, n_ctx=None)
        return EngineAnswerer(choice, LIMIT, prefill_no_think=False, model=model)
