"""Which metric a known evaluation set is scored with.

Source: Radford et al. 2021, table 9 and section A.1.
"""

from __future__ import annotations

import re

# The 27 sets of the linear probe, under the paper's names.
PAPER_METRICS = {
    "Food101": "accuracy",
    "CIFAR10": "accuracy",
    "CIFAR100": "accuracy",
    "Birdsnap": "accuracy",
    "SUN397": "accuracy",
    "Stanford Cars": "accuracy",
    "FGVC Aircraft": "mean per class",
    "VOC2007": "11-point mAP",
    "DTD": "accuracy",
    "Oxford-IIIT Pets": "mean per class",
    "Caltech101": "mean per class",
    "Flowers102": "mean per class",
    "MNIST": "accuracy",
    "FER2013": "accuracy",
    "STL10": "accuracy",
    "EuroSAT": "accuracy",
    "RESISC45": "accuracy",
    "GTSRB": "accuracy",
    "KITTI": "accuracy",
    "Country211": "accuracy",
    "PatchCamelyon": "accuracy",
    "UCF101": "accuracy",
    "Kinetics700": "mean of top-1 and top-5",
    "CLEVR": "accuracy",
    "Hateful Memes": "ROC AUC",
    "Rendered SST2": "accuracy",
    "ImageNet": "accuracy",
}
# What CLIP_benchmark and others call them, where that is not the paper's name.
OTHER_NAMES = {
    "aircraft": "FGVC Aircraft",
    "pets": "Oxford-IIIT Pets",
    "oxfordpets": "Oxford-IIIT Pets",
    "flowers": "Flowers102",
    "oxfordflowers102": "Flowers102",
    "voc2007multilabel": "VOC2007",
    "pascalvoc2007": "VOC2007",
    "clevrcountall": "CLEVR",
    "kitticlosestvehicledistance": "KITTI",
    "cars": "Stanford Cars",
    "pcam": "PatchCamelyon",
    "imagenet1k": "ImageNet",
    "k700": "Kinetics700",
}
BY_KIND = {"classification": "accuracy", "multilabel": "11-point mAP", "retrieval": "recall@k"}


def metric_of(name: str, kind: str = "classification") -> str:
    """The metric of a set.

    Parameters
    ----------
    name : as the paper, CLIP_benchmark (`wds/vtab/pets`) or the user calls it
    kind : what its dataset_type.txt says: classification, multilabel or retrieval

    Returns
    -------
    a key of `metrics.METRICS`, or recall@k; accuracy for a classification set that is not known

    Raises
    ------
    ValueError : a kind that there is not
    """
    if kind not in BY_KIND:
        raise ValueError(f"set {name}: dataset_type {kind!r}; it must be one of {', '.join(BY_KIND)}")
    metric = PAPER_METRICS.get(paper_name(name) or "", BY_KIND[kind])
    # VOC2007 is also given with one label a picture.
    return metric if (metric == "11-point mAP") == (kind == "multilabel") and kind != "retrieval" else BY_KIND[kind]


def paper_name(name: str) -> str | None:
    """The paper's name of a set, or None where it is not among the paper's 27."""
    last = re.split(r"[/\\]", name.lower().rstrip("/"))[-1]
    # The hub's folders flatten `wds/vtab/pets` to `wds_vtab-pets`.
    last = re.sub(r"[^a-z0-9]", "", re.sub(r"^(wds_)?(vtab[-_])?", "", last))
    known = {re.sub(r"[^a-z0-9]", "", one.lower()): one for one in PAPER_METRICS}
    return OTHER_NAMES.get(last, known.get(last))
