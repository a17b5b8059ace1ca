"""Chart colours."""

ACCENT, CALM, MUTED = "#c2416f", "#3c8f88", "#8d8898"
