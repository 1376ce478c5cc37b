"""A picture of some predictions."""

from __future__ import annotations

import io

from PIL import Image

from orchestrator.evaluate.zero_shot import Prediction


def draw_predictions(predictions: dict[str, list[Prediction]], title: str, each: int = 4) -> bytes:
    """Draw predictions of several sets.

    Parameters
    ----------
    predictions : by set; the first `each` of a set make a row
    title : above all

    Returns
    -------
    bytes of a PNG
    """
    # The object interface: pyplot keeps a global state that threads and servers trip over.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(predictions)
    figure = Figure(figsize=(3.6 * each, 2.3 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(rows, 2 * each, squeeze=False, width_ratios=[1, 1.3] * each)
    for row, (name, shown) in enumerate(predictions.items()):
        for column in range(each):
            image_axis, bar_axis = axes[row][2 * column], axes[row][2 * column + 1]
            image_axis.set_axis_off()
            if column >= len(shown):
                bar_axis.set_axis_off()
                continue
            prediction = shown[column]
            picture = Image.open(io.BytesIO(prediction.image)).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            image_axis.imshow(Image.alpha_composite(white, picture))
            image_axis.set_title(_short(prediction.truth), fontsize=8)
            names = [_short(best) for best, _ in prediction.best]
            colors = ["#2a9d5c" if best == prediction.truth else "#b8bcc4" for best, _ in prediction.best]
            places = range(len(names))
            bar_axis.barh(places, [probability for _, probability in prediction.best], color=colors)
            bar_axis.set_xlim(0, 1)
            bar_axis.invert_yaxis()
            bar_axis.set_yticks([])
            bar_axis.set_xticks([])
            for side in bar_axis.spines.values():
                side.set_visible(False)
            for place, text in zip(places, names, strict=True):
                bar_axis.text(0.02, place, text, va="center", fontsize=7)
        axes[row][0].text(-0.15, 0.5, name, rotation=90, va="center", transform=axes[row][0].transAxes, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _short(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
