"""What computes here."""

import streamlit as st


@st.cache_resource(max_entries=1, show_spinner=False)
def device_in_words() -> str:
    """What students are trained and run on unless another device is asked for; imports torch, so call it last."""
    import torch

    from kdad.devices import accelerator

    device = accelerator("auto")
    if device == "cuda":
        return torch.cuda.get_device_name()
    return "Apple GPU (MPS)" if device == "mps" else f"CPU, threads: {torch.get_num_threads()}"
