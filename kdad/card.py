"""Model cards: what a student is and how far to trust it, in Markdown for people and the Hub."""

OVERLAP_IN_WORDS = {
    "same": "The teacher was trained **with the labels of the anomaly classes**: this figure measures more than "
    "detection of the unknown.",
    "related": "The teacher saw labels of **related classes under other names**, but none of this data set.",
    "none": "The teacher saw no labels of the anomaly classes.",
    "unknown": "Nobody can say whether the teacher saw labels of the anomaly classes.",
}


def student_card(config, evaluation: dict | None) -> str:
    """The README.md of a student folder, from its configuration and, once evaluated, its figures."""
    return f"""---
library_name: kdad
tags: [anomaly-detection, knowledge-distillation]
---
# {config.normal_class} of {config.dataset}, copied from {config.teacher}

A `kdad` student: it copies the features of a frozen teacher on normal images (**{config.normal_class}**) only;
where the copy fails, an image is anomalous.

- Teacher: `{config.teacher}` (SHA-256 `{config.teacher_sha256}`)
- Label overlap: {config.label_overlap}. {OVERLAP_IN_WORDS[config.label_overlap]}
- Seed {config.seed}, {config.recipe.epochs} epochs, last epoch kept; no labelled anomaly chose anything.
- {_figures_in_words(evaluation)}

```python
from kdad import Detector

prediction = Detector.load("path/to/this/folder").predict(images)
```
"""


def _figures_in_words(evaluation: dict | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    shown = f"Test AUROC {evaluation['auroc']:.4f} (default score), {evaluation['auroc_mkd']:.4f} (published score)"
    counts = f"{evaluation['n_normal']} normal and {evaluation['n_anomalous']} anomalous test images"
    return f"{shown}; {counts}, one seed."


def teacher_card(card: dict) -> str:
    """The README.md of a compact teacher's folder, from its teacher.json."""
    accuracy = ", ".join(f"{split} {100 * value:.2f} %" for split, value in card["accuracy"].items())
    return f"""# {card["name"]}

A compact `{card["backbone"]}` teacher for 32 px images, trained by `kdad pretrain`.

- Data: {", ".join(card["trained_on"])}, with labels ({len(card["classes"])} classes). Never seen: {card["held_out"]}.
- Taught {origin(card)}.
- Recipe: {", ".join(f"{name} {value}" for name, value in card["recipe"].items())}; seed {card["seed"]}.
- Accuracy: {accuracy} (no test-time augmentation; weights in half precision; test read once).
- {card["seconds"]} s on {card["hardware"]}.
- Licence: {card["licence"]}; the weights inherit that.
"""


def origin(card: dict) -> str:
    """What a teacher started from and what else taught it, in words that follow "taught"; from its teacher.json."""
    start = f"from the weights of {card['start_from']}" if card["start_from"] else "from scratch"
    return f"{start}, copying features of {card['distil_from']} beside the labels" if card["distil_from"] else start
