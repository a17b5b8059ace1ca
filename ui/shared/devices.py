"""The compute device, in words."""

import streamlit as st


@st.cache_resource(max_entries=1, show_spinner=False)
def device_in_words() -> str:
    """Name of the default device for training and scoring; imports torch, so call it last."""
    import torch

    from kdad.devices import accelerator

    device = accelerator("auto")
    if device == "cuda":
        return torch.cuda.get_device_name()
    return "Apple GPU (MPS)" if device == "mps" else f"CPU, threads: {torch.get_num_threads()}"
