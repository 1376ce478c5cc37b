"""Figures of others, to be shown beside one's own and labelled as theirs.

Zero-shot accuracies of OpenAI's released weights, in percent, as evaluations published with open_clip give them.
"""

from __future__ import annotations

from orchestrator.evaluate.benchmarks import paper_name

_SETS = (
    "ImageNet", "CIFAR10", "CIFAR100", "STL10", "Food101", "Stanford Cars", "Oxford-IIIT Pets", "EuroSAT", "MNIST",
    "Flowers102", "FGVC Aircraft",
)  # fmt: skip
_SCORES = {
    "RN50": (59.82, 71.57, 40.30, 94.19, 80.80, 54.53, 85.29, 40.81, 57.55, 65.22, 17.03),
    "RN101": (62.28, 80.78, 47.64, 96.80, 83.67, 61.00, 86.52, 31.31, 52.54, 65.32, 18.53),
    "RN50x4": (66.27, 79.43, 45.14, 96.58, 86.40, 66.73, 88.29, 33.54, 49.03, 67.66, 21.02),
    "RN50x16": (70.72, 81.34, 52.09, 97.75, 90.51, 72.86, 89.56, 43.28, 67.98, 71.88, 27.83),
    "RN50x64": (73.91, 85.10, 59.85, 98.29, 92.05, 75.81, 93.60, 57.65, 85.83, 77.45, 31.03),
    "ViT-B-32": (63.32, 89.83, 64.23, 97.13, 84.00, 59.63, 87.00, 50.44, 48.39, 66.70, 19.53),
    "ViT-B-16": (68.34, 90.77, 66.95, 98.25, 88.72, 64.77, 88.86, 55.94, 51.35, 69.07, 24.21),
    "ViT-L-14": (75.54, 95.59, 75.82, 99.36, 93.05, 77.88, 93.23, 62.63, 76.34, 79.23, 31.81),
    "ViT-L-14-336": (76.56, 94.93, 74.36, 99.43, 93.86, 79.32, 93.69, 61.44, 79.16, 78.52, 33.46),
}

# Oxford-IIIT Pets, 37 breeds, five people (table 2 of the paper), in percent: accuracy, majority vote on all pictures,
# accuracy on guesses, majority vote on guesses. Shots are pictures of each breed that people were shown before.
PEOPLE_ON_PETS = {
    "people, zero-shot": (53.7, 57.0, 69.7, 63.9),
    "people, one-shot": (75.7, 80.3, 78.5, 81.2),
    "people, two-shot": (75.7, 85.0, 79.2, 86.1),
    "CLIP, zero-shot": (93.5, 93.5, 93.5, 93.5),
}

# The paper's table of natural shifts, in percent. Their names as `shift.plain_name` gives them; ImageNet itself first.
_SHIFTS = ("imagenet", "imagenetv2", "imagenetr", "objectnet", "imagenetsketch", "imageneta")
_NATURAL_SHIFT = {
    "ResNet-101": (76.2, 64.3, 37.7, 32.6, 25.2, 2.7),
    "CLIP, zero-shot": (76.2, 70.1, 88.9, 72.3, 60.2, 77.1),
    "CLIP, linear probe": (85.4, 75.9, 84.2, 66.2, 57.4, 75.3),
}


def papers_shifts(shifted: str) -> dict[str, tuple[float, float]]:
    """Accuracies of the paper's classifiers on ImageNet and on one of its shifts, in [0, 1].

    Parameters
    ----------
    shifted : the shift, as `shift.plain_name` gives it; of one that is not listed there are none
    """
    if shifted not in _SHIFTS[1:]:
        return {}
    place = _SHIFTS.index(shifted)
    return {who: (row[0] / 100, row[place] / 100) for who, row in _NATURAL_SHIFT.items()}


def released_scores(name: str) -> dict[str, float]:
    """Zero-shot accuracy of each released model on a set, in percent; empty for a set that is not listed."""
    known = paper_name(name)
    if known not in _SETS:
        return {}
    place = _SETS.index(known)
    return {model: scores[place] for model, scores in _SCORES.items()}
