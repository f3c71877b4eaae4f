"""Networks ψ that compute pairs' increments, and what they hand out."""
