"""What a load needs: `python -m server size`. Arithmetic only; nothing is loaded, started or measured here."""
