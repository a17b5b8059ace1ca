"""Cards of compact teachers: training data, recipe and accuracy."""

from typing import Any


def teacher_card(card: dict[str, Any]) -> str:
    """Render the README.md of a compact teacher's folder from its teacher.json."""
    return f"""# {card["name"]}

A compact `{card["backbone"]}` teacher for 32 px images, trained by `kdad pretrain`.

- Data: {_data(card)}. Never seen: {card["held_out"]}.
- Trained {origin(card)}.
- Recipe: {", ".join(f"{name} {value}" for name, value in card["recipe"].items())}; seed {card["seed"]}.
- {_figures(card)}.
- {card["seconds"]} s on {card["hardware"]}.
- Licence: {card["licence"]}; the weights inherit that.
"""


def without_labels(card: dict[str, Any]) -> bool:
    """Whether a teacher learned from a guide alone; from its teacher.json."""
    return "agreement" in card


def _data(card: dict[str, Any]) -> str:
    """Images and labels that a teacher learned from; from its teacher.json."""
    if without_labels(card):
        learned = ", ".join(card["trained_on"])
        through = card["distil_from"] + (" and the weights that it started from" if card["start_from"] else "")
        return f"{card['images']}, without labels; those of {learned} reached it through {through}"
    return f"{', '.join(card['trained_on'])}, with labels ({len(card['classes'])} classes)"


def _figures(card: dict[str, Any]) -> str:
    """The figures of what a teacher learned, in words; from its teacher.json."""
    named = card["agreement"] if without_labels(card) else card["accuracy"]
    shown = ", ".join(f"{split} {100 * value:.2f} %" for split, value in named.items())
    if without_labels(card):
        return f"Its likeliest class is its guide's: {shown} (weights in half precision)"
    return f"Accuracy: {shown} (no test-time augmentation; weights in half precision; test read once)"


def origin(card: dict[str, Any]) -> str:
    """Initial weights and distillation source of a teacher, to follow the word "trained"; from its teacher.json."""
    start = f"from the weights of {card['start_from']}" if card["start_from"] else "from scratch"
    if without_labels(card):
        return f"{start}, copying features and soft answers of {card['distil_from']}"
    return f"{start}, copying features of {card['distil_from']} beside the labels" if card["distil_from"] else start
