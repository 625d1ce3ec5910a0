"""Online adapters that need no gradient: T3A replaces the classifier by prototypes of what it has seen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.online import Online
from mmbench.online_parts import classifier, entropy, inputs_of
from mmbench.registry import online


@online(
    "t3a",
    title="T3A",
    reference="Iwasawa & Matsuo, Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization, "
    "NeurIPS 2021",
    year=2021,
    memory="M0",
    updates="a set of supports per class; no tensor of the model",
    parameters="0",
    backwards=0.0,
    options={"supports": 100},
    bibtex="iwasawa2021t3a",
    identity_at_start=False,
    note="predicts by prototypes from the first batch on, so it is not the trained model at its start",
)
class T3A(Online):
    """Logits are z . c_k: the head's input z against the unit-length mean of class k's supports.

    Supports start as the classifier's own rows and grow by features with their predicted class, all scaled to unit
    length; the `supports` of lowest entropy per class stay. Class and entropy come from the trained classifier, as in
    the published code. Its bias and the lengths of its rows are not used.
    """

    def build(self) -> None:
        self._classifier = classifier(self.method)

    @torch.no_grad()
    def begin(self) -> None:
        rows = self._classifier.weight.detach()  # (C, D)
        self.supports = F.normalize(rows, dim=1)  # (S, D)
        self.classes = torch.arange(len(rows), device=rows.device)  # (S,)
        self.entropies = entropy(self._classifier(rows))  # (S,)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        return self._features(batch) @ self.prototypes().T

    def prototypes(self) -> Tensor:
        """One of unit length per class, (C, D); zero for a class whose supports are gone."""
        member = F.one_hot(self.classes, self.n_classes).to(self.supports.dtype)  # (S, C)
        return F.normalize(member.T @ self.supports, dim=1)

    @torch.no_grad()
    def adapt(self, batch: Batch) -> int:
        features = self._features(batch)
        logits = self._classifier(features)
        before = len(self.supports)
        self.supports = torch.cat([self.supports, F.normalize(features, dim=1)])
        self.classes = torch.cat([self.classes, logits.argmax(dim=1)])
        self.entropies = torch.cat([self.entropies, entropy(logits)])
        kept = self._surest()
        self.supports, self.classes, self.entropies = self.supports[kept], self.classes[kept], self.entropies[kept]
        return int((kept >= before).sum())

    def _surest(self) -> Tensor:
        """Positions of each class's supports of lowest entropy, in their old order."""
        order = self.entropies.argsort(stable=True)
        each = [order[self.classes[order] == k][: self.options["supports"]] for k in range(self.n_classes)]
        return torch.cat(each).sort().values

    def _features(self, batch: Batch) -> Tensor:
        """The head's inputs (B, D); methods that call it for parts of a batch are asked for one sample at a time."""
        found = self._head_inputs(batch)
        if found is not None:
            return found
        each = [self._head_inputs(batch.select([row])) for row in range(len(batch))]
        features = [one for one in each if one is not None]
        if len(features) < len(batch):
            raise RefusedError(
                f"t3a needs one call of the head per sample, which {self.method.card.name} does not make"
            )
        return torch.cat(features)

    def _head_inputs(self, batch: Batch) -> Tensor | None:
        with inputs_of(self._classifier) as seen:
            self.method.predict(batch)
        return seen[0] if len(seen) == 1 and len(seen[0]) == len(batch) else None
