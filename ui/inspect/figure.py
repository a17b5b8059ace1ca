"""Figure of one picture and its heatmaps, for a slide or a paper."""

import io

from ui.inspect.detectors import CachedDetector, share_below, verdict
from ui.inspect.drawing import drawn, under
from ui.inspect.view_controls import View
from ui.shared.pictures import Picture
from ui.shared.words import percent, percentile

SIDE, DPI = 3.2, 200  # inches and dots per inch


def figure(picture: Picture, detectors: list[CachedDetector], view: View, kind: str) -> bytes:
    """Render the image and each detector's heatmap, colour scale, verdict and p-value; `kind` is one of `FORMATS`."""
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from kdad.detection.rendering import COLOUR_MAP

    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # keep text as text
        made = Figure(figsize=(SIDE * (1 + len(detectors)), SIDE * 1.35), layout="constrained")
        axes = made.subplots(1, 1 + len(detectors), squeeze=False)[0]
        axes[0].imshow(picture.shown, interpolation="nearest")
        axes[0].set_title(picture.name, parse_math=False)
        for place, cached in zip(axes[1:], detectors, strict=True):
            shown = drawn(picture, cached.predict(picture), cached, view)
            place.imshow(under(shown, picture, view), interpolation="nearest")
            place.set_title(cached.student.key, fontsize="medium", parse_math=False)
            place.set_xlabel(_verdict(picture, cached, view), fontsize="small", parse_math=False)
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


def _verdict(picture: Picture, cached: CachedDetector, view: View) -> str:
    detector, prediction = cached.detector, cached.predict(picture)
    share, anomalous = share_below(detector, prediction), verdict(detector, prediction, view.fpr)
    if share is None:
        return f"score {prediction.score[0]:.3f}"
    word = (
        "" if anomalous is None else f"\n{'anomaly' if anomalous else 'normal'} at {percent(view.fpr)} false positives"
    )
    unusual = f"more unusual than {percentile(share)} of {len(detector.calibration)} normals"
    return f"{unusual}, p {prediction.p_value[0]:.4f}{word}"
