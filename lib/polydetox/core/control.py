"""What attribute control compares, and in which languages."""

from __future__ import annotations

from polydetox.core.params import Profile

# The ways of training on labelled comments.
JIGSAW_CONDITIONS = ("base", "sft-lm", "regularised-lm", "sft-classification")


def control_algorithms(profile: Profile) -> list[str]:
    """The algorithms of attribute control that are compared: ``base`` (the base model) first."""
    return ["base", *profile.control.algorithms] if profile.control else []


def control_languages(profile: Profile) -> list[str]:
    """The languages that attribute control is sampled in."""
    return (profile.control.languages or profile.languages) if profile.control else []
