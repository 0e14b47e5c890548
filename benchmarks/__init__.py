"""Measured, not claimed: each file answers one question; see the noxfile."""
