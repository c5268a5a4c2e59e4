"""Hide passwords in a configuration that is shown or recorded."""

import re

from omegaconf import DictConfig


def shown(config: DictConfig) -> DictConfig:
    """Return a copy with the password of the tracking store hidden."""
    copy = config.copy()
    copy.tracking.uri = without_password(config.tracking.uri)
    return copy


def without_password(text: str) -> str:
    """Return the text with the password of every URL in it hidden."""
    text = re.sub(r"://([^/@:\s]*):\S+@", r"://\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", text)
