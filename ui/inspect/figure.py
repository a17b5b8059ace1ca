"""One picture and its heatmaps as a figure for a slide or a paper."""

import io

from ui.inspect.drawing import drawn, under
from ui.inspect.judges import Judge
from ui.inspect.view_controls import View
from ui.shared.pictures import Picture
from ui.shared.words import percent, percentile

SIDE, DPI = 3.2, 200  # inches and dots per inch


def figure(picture: Picture, judges: list[Judge], view: View, kind: str) -> bytes:
    """The image, a heatmap under every judge with its colour scale, verdict and p-value; `kind` as in `FORMATS`."""
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from kdad.detection.rendering import COLOUR_MAP

    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # text stays text
        made = Figure(figsize=(SIDE * (1 + len(judges)), SIDE * 1.35), layout="constrained")
        axes = made.subplots(1, 1 + len(judges), squeeze=False)[0]
        axes[0].imshow(picture.shown, interpolation="nearest")
        axes[0].set_title(picture.name, parse_math=False)
        for place, judge in zip(axes[1:], judges, strict=True):
            shown = drawn(picture, judge(picture), judge, view)
            place.imshow(under(shown, picture, view), interpolation="nearest")
            place.set_title(judge.student.key, fontsize="medium", parse_math=False)
            place.set_xlabel(_verdict(picture, judge, view), fontsize="small", parse_math=False)
            colours = ScalarMappable(Normalize(shown.low, shown.high), COLOUR_MAP)
            made.colorbar(
                colours,
                ax=place,
                location="bottom",
                shrink=0.8,
                label=", ".join(filter(None, (shown.words, shown.unit))),
            )
        for place in axes:
            place.set_xticks([])
            place.set_yticks([])
        file = io.BytesIO()
        made.savefig(file, format=kind.lower(), dpi=DPI, bbox_inches="tight")
    return file.getvalue()


def _verdict(picture: Picture, judge: Judge, view: View) -> str:
    said = judge(picture)
    share, anomalous = judge.share_below(said), judge.is_anomaly(said, view.fpr)
    if share is None:
        return f"score {said.score[0]:.3f}"
    word = (
        "" if anomalous is None else f"\n{'anomaly' if anomalous else 'normal'} at {percent(view.fpr)} false positives"
    )
    return f"more unusual than {percentile(share)} of {len(judge.normals)} normals, p {said.p_value[0]:.4f}{word}"
