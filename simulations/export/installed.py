"""What the extra ``export`` brings, asked for before work begins."""

from importlib.util import find_spec

from fedcompress.errors import ConfigError


def check_installed(*modules: str) -> None:
    """Refuse to begin where a library of the extra ``export`` is missing.

    Raises
    ------
    ConfigError
        Names the first that is not there, and how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; pip install 'fedcompress[export]'")
