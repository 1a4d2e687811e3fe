"""Estfx inside other people's training loops."""
