"""Model cards of students: contents and limits, in Markdown for people and the Hub."""

from typing import Any

from kdad.data.sizes import size_in_words
from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS
from kdad.scores import score_named
from kdad.storage.layout import CROSS_FITTED, HELD_OUT, LEFT_OUT, UNKNOWN
from kdad.storage.operating_point import OperatingPoint
from kdad.storage.student_config import StudentConfig

CALIBRATION_IN_WORDS = {
    HELD_OUT: "normals that this network never saw; p-values are exact, and thresholds hold within stated bounds.",
    CROSS_FITTED: "all normals, each scored by one of several networks that never saw it; p-values are estimates.",
    LEFT_OUT: "all normals, each compared with the others alone; p-values are estimates.",
    UNKNOWN: "how its normals were held out is not recorded; p-values are estimates.",
}


def student_card(
    config: StudentConfig,
    evaluation: dict[str, Any] | None,
    sensitivity: dict[str, Any] | None = None,
    point: OperatingPoint | None = None,
) -> str:
    """Render the README.md of a student folder from its configuration, figures, drawn defects and operating point.

    The last three are None for a student that was not evaluated, not tried, or given none.
    """
    return f"""---
{_metadata(config, evaluation)}
---
# {config.normal_class} of {config.dataset}, copied from {config.teacher}

A `kdad` student: it copies the features of a frozen teacher on normal images (**{config.normal_class}**) only;
where the copy fails, an image is anomalous.

- Teacher: `{config.teacher}` (SHA-256 `{config.teacher_sha256}`)
- Label overlap: {config.label_overlap}. {OVERLAP_IN_WORDS[config.label_overlap]}
- Seed {config.seed}, {config.recipe.epochs} epochs, last epoch kept: no labelled anomaly chose it.
- Score `{config.score}`, {score_named(config.score).selection}.
- Calibration: {CALIBRATION_IN_WORDS[config.calibration]}
- Threshold: none is fixed. An image is called anomalous where its p-value among those normals is at most the
  false-positive rate that is asked for, {_default_in_words(config, point)}
- Images: {reading_in_words(config)}
- {_figures_in_words(evaluation)}{_ancestry_in_words(config)}{_sensitivity_in_words(sensitivity)}

```python
from kdad import Detector

prediction = Detector.from_pretrained("path/to/this/folder, or its id on the Hub").predict(images)
```

## Limits

- It knows one kind of normal, {config.normal_class} of {config.dataset}, as its camera saw it: another lens, light or
  background is unusual, too.
- A p-value says how unusual an image is among normals, not how likely it is to be anomalous. A heatmap shows where the
  copy fails, which is evidence of a place and no outline of it.
- Not for decisions about people.

## Licence

The code is MIT. These weights were learned from images of {config.dataset} and from `{config.teacher}`; the terms of
both hold for them. Whoever shares this folder says what holds for the rest.
"""


def _default_in_words(config: StudentConfig, point: OperatingPoint | None) -> str:
    """The default false-positive rate, and what chose it."""
    if point is None:
        return "5 % by default."
    version = "" if point.calibration_sha256 == config.calibration_sha256 else " It was chosen for an earlier version."
    return f"by default:\n  {point.line}{version}"


def _metadata(config: StudentConfig, evaluation: dict[str, Any] | None) -> str:
    """Card metadata for the Hub as YAML, with the test AUROC, if there is one, as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    results = evaluation and [
        EvalResult(
            task_type="anomaly-detection",
            dataset_type=config.dataset,
            dataset_name=f"{config.dataset}, normal: {config.normal_class}",
            dataset_split=evaluation["split"],
            metric_type="roc_auc",
            metric_name=f"AUROC (label overlap: {config.label_overlap})",
            metric_value=evaluation["auroc"],
        )
    ]
    data = ModelCardData(
        library_name="kdad",
        license="other",
        license_name="see-card",
        tags=["anomaly-detection", "knowledge-distillation"],
        model_name=f"{config.normal_class} of {config.dataset}, copied from {config.teacher}" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _ancestry_in_words(config: StudentConfig) -> str:
    """The changes made after training, a line each."""
    lines = []
    for change in config.ancestry:
        normals = change.get("normals", [])
        what = f"{len(normals)} image{'s' if len(normals) > 1 else ''} learned as normal"
        if "region" in change:
            what = f"looks at a region of interest alone, {100 * change['region']:.3g} % of the image"
        lines.append(f"\n- After `{change['version']}`: {what}.")
    return "".join(lines)


def reading_in_words(config: StudentConfig) -> str:
    """Describe the preprocessing of images."""
    reading = config.preprocessing
    side = f"resized to {size_in_words(reading.resize)} px ({reading.interpolation})"
    crop = f", of which the middle {size_in_words(reading.crop)}" if reading.crop != reading.resize else ""
    tiles = f"in tiles of {config.tile_size} px, each " if config.tile_size else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (reading.mean, reading.std))
    return f"{tiles}{side}{crop}; mean ({mean}), standard deviation ({std})."


def _sensitivity_in_words(sensitivity: dict[str, Any] | None) -> str:
    return "" if sensitivity is None else "".join(f"\n- {line}" for line in sensitivity["lines"])


def _figures_in_words(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    shown = f"Test AUROC {evaluation['auroc']:.4f} (default score), {evaluation['auroc_mkd']:.4f} (published score)"
    counts = f"{evaluation['n_normal']} normal and {evaluation['n_anomalous']} anomalous test images"
    return f"{shown}; {counts}, one seed."
