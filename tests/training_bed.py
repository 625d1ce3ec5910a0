"""What trainings of a backbone need, small enough for many runs a second."""

from __future__ import annotations

from pathlib import Path

import torch
from beds import CPU, memory_data

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.pretrain import CAVMAE
from mmbench.backbone_training.course import Course, Epoch
from mmbench.backbone_training.objectives import Finetuning, Objective, Pretraining
from mmbench.backbone_training.recipes import FinetuneRecipe, PretrainRecipe, Recipe
from mmbench.backbone_training.views import View, ViewFeed
from mmbench.conformance_bed import SIZES
from mmbench.feed import TrialData
from mmbench.ranks import ALONE, Ranks

DATA = memory_data(train=22)
SMALL = PretrainRecipe(lr=1e-3, batch_size=8, epochs=3)
TUNING = FinetuneRecipe(lr=1e-3, batch_size=8, epochs=3, average_from=3)


class Stopped(Exception):
    """As a kill would: nothing is tidied up."""


def pretraining(recipe: PretrainRecipe = SMALL) -> Pretraining:
    return Pretraining(CAVMAE(SIZES, torch.Generator().manual_seed(recipe.seed)), recipe)


def finetuning(recipe: FinetuneRecipe = TUNING, multi_label: bool = False) -> Finetuning:
    return Finetuning(CAVMAEFT(SIZES, torch.Generator().manual_seed(recipe.seed)), recipe, multi_label)


def trained(objective: Objective, folder: Path, stop_after: int | None = None, data: TrialData = DATA) -> Course:
    def tell(row: Epoch) -> None:
        if row.epoch == stop_after:
            raise Stopped

    average_from = objective.recipe.average_from if isinstance(objective, Finetuning) else None
    course = Course(objective, ViewFeed(data, objective.recipe, ALONE), folder, CPU, average_from, tell)
    course.run()
    return course


def view(recipe: Recipe, epoch: int = 0, step: int = 0, ranks: Ranks = ALONE, data: TrialData = DATA) -> View:
    feed = ViewFeed(data, recipe, ranks)
    return feed.stage(epoch, feed.order(epoch), step).to(CPU)
