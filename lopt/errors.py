"""What goes wrong because of the input: one clear sentence each, shown without a traceback by the command line."""


class LoptError(Exception):
    """Bad input. The message says what was expected, what was found and what to do."""


class GraphError(LoptError, ValueError):
    """A model or example input from which no parameter graph can be made."""


class ConfigError(LoptError, ValueError):
    """A config with an unknown key, a wrong type or a value out of range."""


class DataError(LoptError, FileNotFoundError):
    """A data set that is missing or damaged."""


class RuleFileError(LoptError, ValueError):
    """A rule or checkpoint file that is damaged, foreign or of another version."""


class HubError(LoptError, OSError):
    """A rule that the Hugging Face Hub does not give or take."""


class GradientError(LoptError, RuntimeError):
    """Gradients that no rule can read: sparse or complex ones."""


class RunFolderError(LoptError, OSError):
    """A run folder that cannot be written: a full disk, most often."""


class LostProcessError(LoptError, RuntimeError):
    """A process of a distributed run that has gone."""


class GraphWarning(UserWarning):
    """A parameter graph that ties less than it might, and why."""
