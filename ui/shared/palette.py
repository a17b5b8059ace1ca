"""Chart colours."""

SERIES = (
    "#c2416f", "#3c8f88", "#c9772b", "#6f6cb0", "#4f8fce", "#8a8f3a", "#b06fae", "#8d8898", "#8f5a3c", "#2f6f4f",
    "#d8a63a", "#e39bb4",
)  # fmt: skip
ACCENT, CALM, MUTED = "#c2416f", "#3c8f88", "#8d8898"
