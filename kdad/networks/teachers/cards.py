"""Cards of compact teachers: training data, recipe and accuracy."""

from typing import Any


def teacher_card(card: dict[str, Any]) -> str:
    """Render the README.md of a compact teacher's folder from its teacher.json."""
    accuracy = ", ".join(f"{split} {100 * value:.2f} %" for split, value in card["accuracy"].items())
    return f"""# {card["name"]}

A compact `{card["backbone"]}` teacher for 32 px images, trained by `kdad pretrain`.

- Data: {", ".join(card["trained_on"])}, with labels ({len(card["classes"])} classes). Never seen: {card["held_out"]}.
- Trained {origin(card)}.
- Recipe: {", ".join(f"{name} {value}" for name, value in card["recipe"].items())}; seed {card["seed"]}.
- Accuracy: {accuracy} (no test-time augmentation; weights in half precision; test read once).
- {card["seconds"]} s on {card["hardware"]}.
- Licence: {card["licence"]}; the weights inherit that.
"""


def origin(card: dict[str, Any]) -> str:
    """Initial weights and distillation source of a teacher, to follow the word "trained"; from its teacher.json."""
    start = f"from the weights of {card['start_from']}" if card["start_from"] else "from scratch"
    return f"{start}, copying features of {card['distil_from']} beside the labels" if card["distil_from"] else start
