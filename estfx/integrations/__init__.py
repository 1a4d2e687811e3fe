"""Callbacks for other people's trainers, a file for each library.

In goes a trainer's own event; out comes the step that the model is set to.
"""
