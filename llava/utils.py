"""Small things LLaVA's programs expect here."""

from __future__ import annotations

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."


def disable_torch_init() -> None:
    """Kept for LLaVA's callers and does nothing: transformers 5 skips the random initialisation while loading."""
