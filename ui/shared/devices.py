"""The compute device, in words; and what every page will need, loaded before it is asked for."""

from importlib import import_module
from threading import Thread

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


@st.cache_resource(max_entries=1, show_spinner=False)
def load_ahead() -> Thread:
    """Import what the default teacher needs while a visitor reads the page, once per server; call it last."""
    thread = Thread(target=import_module, args=("timm",), daemon=True)
    thread.start()
    return thread
