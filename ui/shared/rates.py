"""The default of sliders of false-positive rates."""

from collections.abc import Sequence

import streamlit as st


def default_rate(key: str, options: Sequence[float], wanted: float) -> float:
    """The default of the slider `key`: the option nearest to the rate that is `wanted` for the student shown.

    The slider moves there if its value is no option, or is only the default of the student shown before. A value that
    was chosen, also by a link, stays.
    """
    usual = min(options, key=lambda rate: abs(rate - wanted))
    value, before = st.session_state.get(key, usual), st.session_state.get(f"{key}-default")
    if value != usual and (value not in options or value == before):
        st.session_state[key] = usual
    st.session_state[f"{key}-default"] = usual
    return usual
