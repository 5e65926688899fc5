"""Attribute accuracy: how much of what its prompt states a picture shows, in the eyes of the scene classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ralu_cache.quality.base import MetricInfo, Pictures, Reading
from ralu_cache.quality.classifier import classify
from ralu_cache.quality.scene_prompts import ATTRIBUTES, Statement, read_prompt

Scores = Mapping[str, NDArray[np.float32]]
"""For each attribute the scores of its classes (classes,)."""
SHAPES = ("shape", "second shape")


def shown_share(scores: Scores, statement: Statement) -> dict[str, float]:
    """For each stated attribute the share, 0 to 1, of its classes among the equally many that score highest."""
    shares = {}
    for name, classes in statement.items():
        best = np.argsort(scores[name])[-len(classes) :]
        shares[name] = sum(ATTRIBUTES[name][index] in classes for index in best) / len(classes)
    return shares


def stated_probability(scores: Scores, statement: Statement) -> dict[str, float]:
    """For each stated attribute the probability, 0 to 1, that the classifier gives to what is stated.

    Of several classes of one attribute (two colours of a background) each counts up to its equal share, so that one of
    them alone is never enough.
    """
    probabilities = {}
    for name, classes in statement.items():
        powers = np.exp(scores[name].astype(np.float64) - scores[name].max())
        stated = (powers / powers.sum())[[ATTRIBUTES[name].index(value) for value in classes]]
        probabilities[name] = float(np.minimum(stated, 1 / len(classes)).sum())
    return probabilities


def attribute_shares(
    pictures: Pictures, prompts: Sequence[str], judge: Callable[[Scores, Statement], dict[str, float]] = shown_share
) -> list[dict[str, float]]:
    """`judge` of each picture (B, Y, X, 3) and its prompt. Raises ValueError for prompts outside the grammar."""
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures need as many prompts, got {len(prompts)}")
    statements = [read_prompt(prompt) for prompt in prompts]
    table = classify(pictures)[1]
    return [
        judge({name: rows[index] for name, rows in table.items()}, statement)
        for index, statement in enumerate(statements)
    ]


def attribute_accuracy(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
    """Percent of the stated attributes that each picture shows, every attribute counting the same.

    What the prompt leaves to chance does not count. The classifier errs too: `classifier.json` beside its weights
    holds its accuracy on real renders, the most that this metric can reach.
    """
    return [100 * float(np.mean(list(shares.values()))) for shares in attribute_shares(pictures, prompts)]


def scene_accuracy(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
    """100 for a picture that shows all of what its prompt states, else 0; stricter than their mean."""
    return [100.0 * (min(shares.values()) == 1) for shares in attribute_shares(pictures, prompts)]


def probability_of_the_stated(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
    """Mean probability, in percent, that the classifier gives to the attributes that the prompt states.

    Smooth where `attribute_accuracy` counts: a shape that only just reads is worth less than one that surely does.
    """
    each = attribute_shares(pictures, prompts, stated_probability)
    return [100 * float(np.mean(list(probabilities.values()))) for probabilities in each]


def shape_accuracy(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
    """Percent of the one or two stated shapes that a picture shows; what few steps break first."""
    each = attribute_shares(pictures, prompts)
    return [100 * float(np.mean([shares[name] for name in SHAPES if name in shares])) for shares in each]


ATTRIBUTES_SHOWN = Reading("attributes", MetricInfo("attribute accuracy", "%"), attribute_accuracy)
PROBABILITY = Reading("probability", MetricInfo("probability of the stated", "%"), probability_of_the_stated)
SCENE_METRICS = (
    ATTRIBUTES_SHOWN,
    Reading("scenes", MetricInfo("scenes wholly right", "%"), scene_accuracy),
    PROBABILITY,
    Reading("shapes", MetricInfo("shapes right", "%"), shape_accuracy),
)
"""What can be asked of pictures whose prompts are scenes of the embedded model."""
