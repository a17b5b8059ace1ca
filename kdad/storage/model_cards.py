"""Model cards of students: what each is and how far to trust it, in Markdown for people and the Hub."""

from typing import Any

from kdad.networks.provenance import OVERLAP_IN_WORDS
from kdad.storage.layout import CROSS_FITTED, DISTANT_ERROR, DISTANT_PEAK, HELD_OUT, LAST_LAYER, MKD, PEAK, UNKNOWN
from kdad.storage.student_config import StudentConfig

# What chose the default score. None of it is of the data set of a student on other data than what is named.
SELECTION_IN_WORDS = {
    DISTANT_ERROR: "chosen once, for all teachers, on labelled validation anomalies of CIFAR-10's cat and airplane.",
    DISTANT_PEAK: "chosen once, for all defects, on pseudo-anomalies blended into normal photographs.",
    PEAK: "chosen once, for all defects, on test images of the built-in `patterns-defects`, bricks.",
    LAST_LAYER: "not the default.",
    MKD: "as published.",
}
CALIBRATION_IN_WORDS = {
    HELD_OUT: "normals that this network never saw; p-values are exact, and thresholds hold within stated bounds.",
    CROSS_FITTED: "all normals, each scored by one of several networks that never saw it; p-values are estimates.",
    UNKNOWN: "how its normals were held out is not recorded; p-values are estimates.",
}


def student_card(config: StudentConfig, evaluation: dict[str, Any] | None) -> str:
    """The README.md of a student folder, from its configuration and, once evaluated, its figures."""
    return f"""---
{_metadata(config, evaluation)}
---
# {config.normal_class} of {config.dataset}, copied from {config.teacher}

A `kdad` student: it copies the features of a frozen teacher on normal images (**{config.normal_class}**) only;
where the copy fails, an image is anomalous.

- Teacher: `{config.teacher}` (SHA-256 `{config.teacher_sha256}`)
- Label overlap: {config.label_overlap}. {OVERLAP_IN_WORDS[config.label_overlap]}
- Seed {config.seed}, {config.recipe.epochs} epochs, last epoch kept: no labelled anomaly chose it.
- Score `{config.score}`: {SELECTION_IN_WORDS[config.score]}
- Calibration: {CALIBRATION_IN_WORDS[config.calibration]}
- {_figures_in_words(evaluation)}

```python
from kdad import Detector

prediction = Detector.load("path/to/this/folder").predict(images)
```
"""


def _metadata(config: StudentConfig, evaluation: dict[str, Any] | None) -> str:
    """What the Hub reads of a card, as YAML: with the test AUROC, once there is one, as its `model-index`."""
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
        tags=["anomaly-detection", "knowledge-distillation"],
        model_name=f"{config.normal_class} of {config.dataset}, copied from {config.teacher}" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _figures_in_words(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    shown = f"Test AUROC {evaluation['auroc']:.4f} (default score), {evaluation['auroc_mkd']:.4f} (published score)"
    counts = f"{evaluation['n_normal']} normal and {evaluation['n_anomalous']} anomalous test images"
    return f"{shown}; {counts}, one seed."
