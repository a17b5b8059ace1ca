"""Building blocks of the app's pages; with `app.py` and `pages/`, the only code that imports Streamlit."""
