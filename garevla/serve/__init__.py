"""An index of videos in a browser: an HTTP API and one page.

Needs ``pip install "garevla[serve]"``.
"""
