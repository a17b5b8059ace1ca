"""What the pages of the app share; the only place, with `app.py` and `pages/`, that knows Streamlit."""
